import type { Collection, LiveOptions, LiveResult, Select, Selected } from "./paperdb.js";

/**
 * The documents of a live query, and what becomes of them. New options begin another query; equal ones do not, so they need
 * not be memoized.
 */
export declare function useLive<D extends object, I, const S extends Select = string>(
  collection: Collection<D, I>,
  options?: LiveOptions<D> & { select?: S },
): LiveResult<Selected<D, S>>;
