import type { Collection, LiveOptions, Selected } from "./paperdb.js";


/** Options of `createCollection` of `@tanstack/db`; any others go through, such as `id`. */
export declare function paperdbOptions<D extends object, I, const O extends LiveOptions<D>>(
  options: { collection: Collection<D, I>; id?: string; startSync?: boolean; gcTime?: number } & O & LiveOptions<D>,
): {
  id?: string;
  startSync?: boolean;
  gcTime?: number;
  getKey: (document: Selected<D, O>) => string;
  sync: { sync: (told: any) => () => void; rowUpdateMode: "full" };
  onInsert: (about: any) => Promise<unknown>;
  onUpdate: (about: any) => Promise<unknown>;
  onDelete: (about: any) => Promise<unknown>;
};
