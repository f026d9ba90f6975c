import type { Collection, LiveOptions, Select, Selected } from "./paperdb.js";


/** Options of `createCollection` of `@tanstack/db`; any others go through, such as `id`. */
export declare function paperdbOptions<D extends object, I, const S extends Select = string>(
  options: { collection: Collection<D, I>; id?: string; startSync?: boolean; gcTime?: number } & LiveOptions<D> & { select?: S },
): {
  id?: string;
  startSync?: boolean;
  gcTime?: number;
  getKey: (document: Selected<D, S>) => string;
  sync: { sync: (told: any) => () => void; rowUpdateMode: "full" };
  onInsert: (about: any) => Promise<unknown>;
  onUpdate: (about: any) => Promise<unknown>;
  onDelete: (about: any) => Promise<unknown>;
};
