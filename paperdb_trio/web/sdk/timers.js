/**
 * Timers by name.
 *
 * Law: a name runs once at a time; setting it again replaces it.
 */

const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** One in the background does not keep a Node process alive. */
export class Timers {
  #running = new Map();

  set(name, ms, run, { background = true } = {}) {
    this.clear(name);
    const fire = () => (this.#running.delete(name), run());
    const id = setTimeout(fire, Math.min(Math.max(ms, 0), LONGEST_TIMER_MS));
    if (background) id.unref?.();
    this.#running.set(name, id);
  }

  has(name) {
    return this.#running.has(name);
  }

  clear(...names) {
    for (const name of names) {
      clearTimeout(this.#running.get(name));
      this.#running.delete(name);
    }
  }
}
