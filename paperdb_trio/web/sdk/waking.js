/**
 * When to doubt a connection: the network came back, a page is seen again, the machine slept.
 *
 * Law: clocks and a browser's events; knows nothing of connections.
 */

import { Timers } from "./timers.js";

const TICK_MS = 5_000;
/** Two ticks this much further apart than they should be: the machine slept, or its clock was set. */
const CLOCK_JUMP_MS = 5_000;

export class Waking {
  #events;
  #onWake;
  #onTick;
  #ticked = 0;
  #timers = new Timers();

  /** `onWake()` after what often leaves a connection dead; `onOffline()`; `onTick(now)` every 5 s otherwise. */
  constructor({ onWake, onOffline, onTick }) {
    this.#onWake = onWake;
    this.#onTick = onTick;
    this.#events = {
      online: onWake,
      pageshow: onWake,
      visibilitychange: () => globalThis.document?.visibilityState === "visible" && onWake(),
      offline: onOffline,
    };
  }

  watch(on) {
    if (on === this.#timers.has("tick")) return;
    for (const [name, listener] of Object.entries(this.#events)) {
      const target = name === "visibilitychange" ? globalThis.document : globalThis;
      target?.[on ? "addEventListener" : "removeEventListener"]?.(name, listener);
    }
    this.#ticked = Date.now();
    if (on) this.#timers.set("tick", TICK_MS, () => this.#tick());
    else this.#timers.clear("tick");
  }

  #tick() {
    const now = Date.now();
    const late = now - this.#ticked - TICK_MS;
    this.#ticked = now;
    this.#timers.set("tick", TICK_MS, () => this.#tick());
    if (Math.abs(late) > CLOCK_JUMP_MS) this.#onWake();
    else this.#onTick(now);
  }
}
