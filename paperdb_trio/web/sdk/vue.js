/**
 * Live queries for Vue 3.
 *
 * Law: imports Vue by its name. A query ends with the scope in which it was begun.
 */

import { computed, onScopeDispose, shallowRef, toValue, watch } from "vue";

export function useLive(collection, options = {}) {
  const view = shallowRef(null);
  let live = null;
  let off = () => {};
  const begin = () => {
    off();
    live = toValue(collection).live(JSON.parse(JSON.stringify(toValue(options))));
    off = live.subscribe((now) => (view.value = now));
  };
  watch(() => [toValue(collection).name, JSON.stringify(toValue(options))].join(), begin, { immediate: true });
  onScopeDispose(() => off());
  const part = (name) => computed(() => view.value[name]);
  return {
    documents: part("documents"),
    status: part("status"),
    error: part("error"),
    hasMore: part("hasMore"),
    more: () => live.more(),
  };
}
