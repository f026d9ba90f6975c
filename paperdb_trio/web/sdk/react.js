/**
 * Live queries for React 18 and later.
 *
 * Law: imports React by its name and nothing else of it than hooks. Rendering begins nothing: a query begins once its
 * component is mounted, and ends after it is unmounted; Strict mode's second mount finds the first one's query.
 */

import { useMemo, useSyncExternalStore } from "react";

export function useLive(collection, options = {}) {
  const key = JSON.stringify(options);
  const bound = useMemo(() => {
    const live = collection.live(JSON.parse(key));
    return { subscribe: (listener) => live.subscribe(listener), get: () => live.get(), more: () => live.more() };
  }, [collection, key]);
  const view = useSyncExternalStore(bound.subscribe, bound.get, bound.get);
  return useMemo(() => ({ ...view, more: bound.more }), [view, bound]);
}
