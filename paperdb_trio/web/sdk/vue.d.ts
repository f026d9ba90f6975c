import type { Collection, LiveOptions, LiveView, Select, Selected } from "./paperdb.js";

interface Readable<T> {
  readonly value: T;
}
type OrSource<T> = T | Readable<T> | (() => T);
type Part<V, K extends keyof V> = Readable<V[K]>;

/** Refs of a live query's parts. Options may be a ref or a getter: when they change, another query begins. */
export declare function useLive<D extends object, I, const S extends Select = string>(
  collection: OrSource<Collection<D, I>>,
  options?: OrSource<LiveOptions<D> & { select?: S }>,
): { readonly [K in "documents" | "status" | "error" | "hasMore"]: Part<LiveView<Selected<D, S>>, K> } & { more(): void };
