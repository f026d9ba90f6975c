import type { Collection, LiveOptions, LiveView, Selected } from "./paperdb.js";

interface Readable<T> {
  readonly value: T;
}
type OrSource<T> = T | Readable<T> | (() => T);
type Part<V, K extends keyof V> = Readable<V[K]>;

/** Refs of a live query's parts. Options may be a ref or a getter: when they change, another query begins. */
export declare function useLive<D extends object, I, const O extends LiveOptions<D>>(
  collection: OrSource<Collection<D, I>>,
  options?: OrSource<O & LiveOptions<D>>,
): { readonly [K in "documents" | "status" | "error" | "hasMore"]: Part<LiveView<Selected<D, O>>, K> } & { more(): void };
