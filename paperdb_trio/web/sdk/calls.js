/**
 * Calls of the user's functions: handlers, options of subscriptions, status listeners.
 *
 * Law: what they throw goes to the subscription's `onError`, else to the console, and affects no other function.
 */

export class Calls {
  #later = [];

  /** Call it in a microtask, or at the next `flush`, whichever comes first: when the state is whole. */
  queue(call) {
    if (this.#later.push(call) === 1) queueMicrotask(() => this.flush());
  }

  flush() {
    for (const call of this.#later.splice(0)) call();
  }

  /** `subscription`: whose function it is; null for a status listener. */
  run(subscription, run, ...args) {
    const failed = (error) => this.report(error, subscription);
    try {
      const result = run(...args);
      if (typeof result?.then === "function") Promise.resolve(result).catch(failed);
    } catch (error) {
      failed(error);
    }
  }

  report(error, subscription) {
    try {
      const { onError } = subscription?.options ?? {};
      if (onError) return void onError(error);
    } catch (another) {
      console.error("paperdb: an onError function failed:", another);
    }
    const of = subscription ? `the subscription to '${subscription.collection}'` : "a status listener";
    return console.error(`paperdb: ${of}:`, error);
  }
}
