/**
 * Types of the PaperDB client. They know the schema that is given to `createClient`; collections without
 * one take any JSON object, or what `db.collection<T>("name")` says.
 */

// --- schemas -------------------------------------------------------------------------------------

export interface FieldSchema {
  type: "string" | "number" | "boolean" | "object" | "array";
  required?: boolean;
  unique?: boolean;
  index?: boolean;
  /** Set on insert when the field is missing. */
  default?: unknown;
}

export interface CollectionSchema {
  properties: { readonly [field: string]: FieldSchema };
  /** Each is the fields of an index, `-` in front for descending: `[["room", "-createdAt"]]`. */
  indexes?: readonly (readonly string[])[];
}

export interface Schema {
  readonly [collection: string]: CollectionSchema;
}

interface FieldTypes {
  string: string;
  number: number;
  boolean: boolean;
  object: Record<string, unknown>;
  array: unknown[];
}

type Flat<T> = { [K in keyof T]: T[K] } & {};
type Properties<C> = C extends { properties: infer P } ? P : never;
type ValueOf<F> = F extends { type: infer T extends keyof FieldTypes } ? FieldTypes[T] : unknown;
type NeededKeys<P> = {
  [K in keyof P]: P[K] extends { default: unknown } ? never : P[K] extends { required: true } ? K : never;
}[keyof P];
type PresentKeys<P> = {
  [K in keyof P]: P[K] extends { default: unknown } | { required: true } ? K : never;
}[keyof P];
type FieldsOf<P, Certain extends keyof P> = Flat<
  { -readonly [K in Certain]: ValueOf<P[K]> } & { -readonly [K in Exclude<keyof P, Certain>]?: ValueOf<P[K]> }
>;

/** What the server adds to every document. Times are RFC 3339, UTC, with milliseconds. */
export interface SystemFields {
  _id: string;
  createdAt: string;
  updatedAt: string;
}

/** A document as it is read: fields that are required or have a default are there. */
export type DocumentOf<C extends CollectionSchema> = Flat<
  FieldsOf<Properties<C>, PresentKeys<Properties<C>>> & SystemFields
>;
/** A document as it is inserted: fields that are required and have no default must be there. */
export type DraftOf<C extends CollectionSchema> = Flat<
  FieldsOf<Properties<C>, NeededKeys<Properties<C>>> & { _id?: string }
>;

/** Any JSON object. */
export type AnyDraft = Record<string, unknown>;
export type AnyDocument = AnyDraft & SystemFields;

type DraftFor<T> = Flat<Omit<T, keyof SystemFields> & { _id?: string }>;
type ReadAs<T> = Flat<Omit<T, keyof SystemFields> & SystemFields>;

// --- documents -----------------------------------------------------------------------------------

interface Equality<V> {
  eq?: V | null;
  ne?: V | null;
  in?: readonly (V | null)[];
  nin?: readonly (V | null)[];
  exists?: boolean;
}
interface Order<V> {
  gt?: V;
  gte?: V;
  lt?: V;
  lte?: V;
}
interface Text {
  startsWith?: string;
  contains?: string;
}
interface Elements<E> {
  contains?: E;
}
interface Presence {
  exists?: boolean;
}
type AnyOperators = Equality<unknown> & Order<string | number> & { startsWith?: string; contains?: unknown };

/** What a field of this type can be compared by. */
export type Operators<V> = unknown extends V
  ? AnyOperators
  : [V] extends [string]
    ? Equality<V> & Order<V> & Text
    : [V] extends [number]
      ? Equality<V> & Order<V>
      : [V] extends [boolean]
        ? Equality<V>
        : [V] extends [readonly (infer E)[]]
          ? Presence & Elements<E>
          : [V] extends [string | number | boolean]
            ? AnyOperators
            : Presence;
type Operand<V> = unknown extends V ? unknown : Extract<V, string | number | boolean>;

/** `{age: {gte: 18}, admin: true}`; dotted paths reach into objects; `or`, `and`, `not` combine. */
export type Filter<D> = { [K in keyof D]?: Operand<D[K]> | Operators<NonNullable<D[K]>> | null } & {
  or?: readonly Filter<D>[];
  and?: readonly Filter<D>[];
  not?: Filter<D>;
} & { [path: `${string}.${string}`]: unknown };

type Name<D> = keyof D & string;
type SortKey<D> = Name<D> | `-${Name<D>}` | `${"" | "-"}${string}.${string}` | `${string},${string}`;

export interface FindOptions<D> {
  filter?: Filter<D>;
  /** Field names, `-` in front for descending: `"-createdAt,name"` or `["-createdAt", "name"]`. */
  sort?: SortKey<D> | readonly SortKey<D>[];
  /** 1 to 1000; 100 if left out. */
  limit?: number;
  offset?: number;
  /** `next` of the page before, found with the same `sort`. */
  after?: string;
  /** Only these fields: `"name,email"` or `["name", "email"]`. */
  select?: string | readonly string[];
  /** Also count all that match, into `total`. */
  count?: boolean;
}

export type Select = string | readonly string[];

/** A document with only what `select` names, if it is an array of literals, and `_id`; of a path, its first field. */
export type Selected<D, S extends Select> = S extends readonly (infer P extends string)[]
  ? string extends P
    ? D
    : Flat<Pick<D, Extract<(P extends `${infer Head}.${string}` ? Head : P) | "_id", keyof D>>>
  : D;

/** The documents found; `hasMore` says whether there are others after them. */
export type Found<D> = D[] & {
  readonly hasMore: boolean;
  /** The seq of the last change that they show: an event with a higher one is newer. */
  readonly seq: number;
  readonly limit: number;
  readonly offset: number;
  /** Only with `count: true`. */
  readonly total?: number;
  /** What `after` takes for the next page, if there is one. */
  readonly next?: string;
};

export interface KeyOptions {
  /**
   * Instead of the key that the SDK makes for each write. The server keeps it for a day: the same call with the same
   * key writes nothing, and resolves to what the first one did.
   */
  idempotencyKey?: string;
}

export interface InsertOptions extends KeyOptions {
  /** The document's id; the server makes one if left out. */
  key?: string;
  /** Fields whose values no other document may have; the schema's if left out. */
  unique?: string[];
}

export interface BulkOptions extends KeyOptions {
  /** All or none: the first failure rejects, with its `index`. */
  atomic?: boolean;
  unique?: string[];
}

export interface BulkResult<D> {
  inserted: number;
  failed: number;
  documents: D[];
  errors: { index: number; error: string; code: string }[];
}

export interface WriteOptions<D = AnyDocument> extends KeyOptions {
  /** Write only if this is the document's seq (see `seqOf`), else 412 `PRECONDITION_FAILED`; `"*"`: if it exists. */
  ifMatch?: number | "*";
  /** Write only if the document satisfies this filter, else 412 `CONDITION_FAILED`. */
  where?: Filter<D>;
}

/** What `update` merges in. Steps are atomic: `{n: {increment: 1}, tags: {push: "x"}, draft: {unset: true}}`. */
export type Changes<I> = { [K in keyof I]?: I[K] | null | StepOf<NonNullable<I[K]>> | { unset: true } };
type StepOf<V> = V extends number
  ? { increment: number } | { decrement: number }
  : V extends readonly (infer E)[]
    ? { push: E } | { pull: E }
    : never;

/** A document as it was after the change `seq` (for a delete, before it). */
export interface Version<D> {
  type: "insert" | "update" | "delete";
  data: D;
  seq: number;
}

/** `D` is a document as it is read, `I` as it is inserted. Every method rejects with `PaperDBError`. */
export interface Collection<D = AnyDocument, I = AnyDraft> {
  readonly name: string;
  /** 409 `CONFLICT` for an id or a unique value that is taken. */
  insert(document: I, options?: InsertOptions): Promise<D>;
  /** Each document stands or falls alone, unless `atomic`. */
  insertBulk(documents: readonly I[], options?: BulkOptions): Promise<BulkResult<D>>;
  find<const S extends Select = string>(options?: FindOptions<D> & { select?: S }): Promise<Found<Selected<D, S>>>;
  /** 404 `NOT_FOUND`. */
  get(id: string, options?: { select?: string | readonly string[] }): Promise<D>;
  /** Merge fields, not deep; resolves to the whole document. 404 `NOT_FOUND`. */
  update(id: string, fields: Changes<I>, options?: WriteOptions<D>): Promise<D>;
  /** Replace the document with this id, or insert it. */
  replace(id: string, document: I, options?: WriteOptions<D>): Promise<D>;
  /** 404 `NOT_FOUND`. */
  delete(id: string, options?: WriteOptions<D>): Promise<Deleted>;
  count(options?: { filter?: Filter<D> }): Promise<number>;
  /** The documents of a query, and what becomes of them. Nothing is asked for until something subscribes. */
  live<const S extends Select = string>(options?: LiveOptions<D> & { select?: S }): Live<Selected<D, S>>;
  /** The versions that the server's log still holds, newest first. 404 `NOT_FOUND`. */
  history(id: string, options?: { limit?: number }): Promise<Version<D>[]>;
}

export interface Deleted {
  deleted: true;
  _id: string;
}

// --- live queries --------------------------------------------------------------------------------

export interface LiveOptions<D = AnyDocument> {
  filter?: Filter<D>;
  /** As of `find`. */
  sort?: SortKey<D> | readonly SortKey<D>[];
  /** Only the first so many, until `more()`; all if left out. */
  limit?: number;
  /** As of `find`. */
  select?: string | readonly string[];
}

/**
 * `loading`: nothing is known yet. `live`: it is what the server has. `stale`: it was, and will be again. `error`: it ended
 * with `error`, or cannot begin; a new token may mend it.
 */
export type LiveStatus = "loading" | "live" | "stale" | "error";

/** Frozen, and another one after each change. A document that has not changed is the same object. */
export interface LiveView<D> {
  readonly documents: readonly D[];
  readonly status: LiveStatus;
  readonly error: PaperDBError | null;
  /** Whether `more()` would show more. */
  readonly hasMore: boolean;
}

export interface LiveResult<D> extends LiveView<D> {
  more(): void;
}

export interface Live<D> {
  /** Calls back at once, and after each change; returns a function that ends it. Also the contract of a Svelte store. */
  subscribe(callback: (view: LiveView<D>) => unknown): () => void;
  get(): LiveView<D>;
  /** Show so many more as `limit` says. */
  more(): void;
  /** End it at once, for all who subscribed. */
  close(): void;
}

// --- batches -------------------------------------------------------------------------------------

interface Conditions<D> {
  ifMatch?: number;
  where?: Filter<D>;
}
type OperationOn<C extends string, D, I> =
  | { op: "insert"; collection: C; document: I; id?: string }
  | ({ op: "update"; collection: C; id: string; fields: Changes<I> } & Conditions<D>)
  | ({ op: "replace"; collection: C; id: string; document: I } & Conditions<D>)
  | ({ op: "delete"; collection: C; id: string } & Conditions<D>);

/** An operation of a batch, in any collection. */
export type Operation = OperationOn<string, AnyDocument, AnyDraft>;

/** `O`, if it fits the schema of its collection. */
type Fitting<S extends Schema, O> = O extends { op: infer K; collection: infer C extends keyof S & string }
  ? Extract<OperationOn<C, DocumentOf<S[C]>, DraftOf<S[C]>>, { op: K }>
  : Operation;
type ResultOf<S extends Schema, O> = O extends { op: "delete" }
  ? Deleted
  : O extends { op: "insert" | "update" | "replace"; collection: infer C }
    ? C extends keyof S
      ? DocumentOf<S[C]>
      : AnyDocument
    : AnyDocument | Deleted;

export interface BatchResult<R> {
  /** One for each operation, in order. */
  results: R;
  /** The seq of the first result; all events of the batch have it. */
  txn: number;
}

/** The seq of a document's last change, if the document came from insert, get, update, replace or batch. */
export declare function seqOf(document: object): number | undefined;

// --- realtime ------------------------------------------------------------------------------------

export interface RealtimeEvent<D = Record<string, unknown>> {
  type: "insert" | "update" | "delete";
  collection: string;
  /** The full document; for delete, as it last was. */
  data: D;
  /** Strictly increasing, in the order in which changes were committed. */
  seq: number;
}

/** Changes after `since` and before `oldest` are no longer in the server's log, and were missed. */
export interface Gap {
  since: number;
  oldest: number;
}

/**
 * `retryIn` is in seconds. `closed` is final until the next `subscribe`. `live` and `catching up` have a `reason`
 * while the token cannot be renewed: the connection stays open until its current token ends.
 */
export type Status =
  | { readonly state: "connecting" }
  | { readonly state: "live" | "catching up"; readonly reason?: string }
  | { readonly state: "offline"; readonly reason: string; readonly retryIn: number }
  | ({ readonly state: "gap" } & Readonly<Gap>)
  | { readonly state: "closed"; readonly reason: string; readonly code?: string };

export interface SubscribeOptions<D = Record<string, unknown>> {
  /** Only documents that match: one that no longer does is a `delete`, one that begins to is an `insert`. */
  filter?: Filter<D>;
  /** Only these fields and `_id`; no event for a change of others. */
  select?: string | readonly string[];
  /** The subscription has started: the handler sees every change from now on. Called once. */
  onReady?: () => unknown;
  /** Changes were missed: if you keep a copy, fetch it again. Changes after the gap keep coming. */
  onGap?: (gap: Gap) => unknown;
  /**
   * What the handler threw, or why the subscription ended. Also, once per outage, a cause that somebody may have
   * to fix while the SDK keeps trying: the server refuses new tokens, or its certificate is no longer good.
   * Without it: `console.error`.
   */
  onError?: (error: unknown) => unknown;
}

/** What a token may do with the documents of a collection. */
export interface Rule {
  /** Only documents that match it; all if left out. */
  filter?: Readonly<Record<string, unknown>>;
  /** Only these fields, and `_id`; all if left out. */
  select?: readonly string[];
  /** The token's if left out. */
  permissions?: readonly ("read" | "write")[];
}

export interface TokenRequest {
  /** Names, or a rule for each. */
  collections: readonly string[] | Readonly<Record<string, Rule>>;
  /** Whose token it is, for `revoke`. */
  subject?: string;
  /** `["read"]` if left out. */
  permissions?: readonly ("read" | "write")[];
  /** Seconds, 30 to 86400; 900 if left out. */
  expiresIn?: number;
}

export interface Realtime<S extends Schema = {}> {
  /**
   * Call `handler` with every change from now on: once each, in order, over any outage. Returns a function
   * that ends the subscription at once. Throws a `PaperDBError` for a bad name or a closed client.
   */
  subscribe<K extends keyof S & string>(
    collection: K,
    handler: (event: RealtimeEvent<DocumentOf<S[K]>>) => unknown,
    options?: SubscribeOptions<DocumentOf<S[K]>>,
  ): () => void;
  subscribe<T = Record<string, unknown>>(
    collection: string,
    handler: (event: RealtimeEvent<T>) => unknown,
    options?: SubscribeOptions,
  ): () => void;
  /** Resolves to the raw token, for a WebSocket client of your own. 403 `PLAN_REQUIRED` on plan free. */
  generateToken(request: TokenRequest): Promise<string>;
  /** Ends a subject's tokens that were minted until now, or one token, before their time. For secret keys. */
  revoke(which: { subject: string } | { jti: string }): Promise<void>;
  /** Call `listener` at each change of the connection's state. Returns a function that removes it. */
  onStatus(listener: (status: Status) => unknown): () => void;
  readonly status: Status;
}

// --- the client ----------------------------------------------------------------------------------

/** The server refused, or could not be reached. Other members of the response's JSON are on it, too. */
export declare class PaperDBError extends Error {
  readonly name: "PaperDBError";
  /** The HTTP status; 0 if there was no response (a write may or may not have happened). */
  readonly status: number;
  /** For programs: `CONFLICT`, `NOT_FOUND`, `NETWORK`, … */
  readonly code: string;
  /** Seconds, if the server said when to try again. */
  readonly retryAfter?: number;
  readonly [extra: string]: unknown;
  constructor(message: string, about?: { status?: number; code?: string; cause?: unknown; [extra: string]: unknown });
}

/** What a WebSocket class must have: the browser's, Node's and the `ws` package's do. */
export type WebSocketClass = new (url: string, protocols?: string[]) => {
  onmessage: any;
  onerror: any;
  onclose: any;
  send(text: string): void;
  close(code?: number): void;
};

/** What a `fetch` must do: the browser's and Node's do. It gets `redirect: "manual"`. */
export type FetchFunction = (url: string, init?: any) => Promise<{
  readonly ok: boolean;
  readonly status: number;
  readonly headers: { get(name: string): string | null };
  text(): Promise<string>;
}>;

type MaybePromise<T> = T | Promise<T>;

export interface ClientOptions<S extends Schema = {}> {
  /** http(s) or ws(s), with or without a path; in a browser also a path of the page's own host, such as `"/"`. */
  baseUrl: string | { readonly href: string };
  /** `baseUrl` if left out. */
  realtimeUrl?: string | { readonly href: string };
  /** `pdb_sk_…` or `pdb_pk_…`. A secret key belongs on a server. */
  apiKey?: string;
  /**
   * For front ends that hold no key: asks your own back end for a token that covers `collections`. It has 30 s. If
   * its error has a `status` of 401 or 403, the subscriptions end; after others it is called again, ever less often.
   */
  getToken?: (wanted: { collections: string[]; permissions: ["read"] }) => MaybePromise<string | { token: string }>;
  /** With a secret key, the client registers it before its first write to each of these collections. */
  schema?: S;
  /** Lifetime in seconds of the tokens that `apiKey` mints; the server's default is 900. */
  tokenExpiresIn?: number;
  /** Seconds before a token's end at which it is renewed: 60; halfway for a token that lives shorter than that. */
  tokenMarginSeconds?: number;
  /** Instead of the global one. */
  fetch?: FetchFunction;
  /** Instead of the global one, which browsers and Node 22 or later have. For an older Node: `ws`, from npm. */
  WebSocket?: WebSocketClass;
}

interface ClientMethods<S extends Schema> {
  readonly realtime: Realtime<S>;
  /** All of these writes, in this order, or none. Rejects for the first that fails, with its `index`. */
  batch<const O extends readonly Operation[]>(
    operations: O & { readonly [N in keyof O]: Fitting<S, O[N]> },
    options?: KeyOptions,
  ): Promise<BatchResult<{ -readonly [N in keyof O]: ResultOf<S, O[N]> }>>;
  /**
   * Any collection, also one whose name is taken here (`batch`, `close`) or by every object (`constructor`), is looked for by
   * others (`then`, `toJSON`), or begins with `_`.
   */
  collection<K extends keyof S & string>(name: K): Collection<DocumentOf<S[K]>, DraftOf<S[K]>>;
  collection<T extends object = AnyDraft>(name: string): Collection<ReadAs<T>, DraftFor<T>>;
  /** End all subscriptions. Documents can still be read and written. */
  close(): void;
}

export type Client<S extends Schema = {}> = ClientMethods<S> & {
  readonly [K in keyof S as Exclude<K, keyof ClientMethods<S>>]: Collection<DocumentOf<S[K]>, DraftOf<S[K]>>;
} & { readonly [collection: string]: Collection };

/** Throws a `PaperDBError` for options that cannot work. */
export declare function createClient<const S extends Schema = {}>(
  options: ({ apiKey: string | undefined } | { getToken: NonNullable<ClientOptions["getToken"]> }) & ClientOptions<S>,
): Client<S>;
