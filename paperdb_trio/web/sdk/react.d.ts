import type { Collection, LiveOptions, LiveResult, Selected } from "./paperdb.js";

/**
 * The documents of a live query, and what becomes of them. New options begin another query; equal ones do not, so they need
 * not be memoized.
 */
export declare function useLive<D extends object, I, const O extends LiveOptions<D>>(
  collection: Collection<D, I>,
  options?: O & LiveOptions<D>,
): LiveResult<Selected<D, O>>;
