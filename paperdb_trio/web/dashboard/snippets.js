/**
 * Code that mints the token that was composed, and listens with it, for this server.
 *
 * Law: no key stands in it: it is `PAPERDB_API_KEY` of the environment. What a person typed is quoted as a literal of the
 * language.
 */

import { server } from "./session.js";

const address = () => server.href.replace(/\/$/, "");

/** For a shell: nothing in it is expanded. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl(request) {
  return [
    `curl -sS -X POST ${quoted(`${address()}/realtime/token`)} \\`,
    '  -H "Authorization: Bearer $PAPERDB_API_KEY" \\',
    '  -H "Content-Type: application/json" \\',
    `  -d ${quoted(JSON.stringify(request))}`,
  ].join("\n");
}

const first = ({ collections }) => {
  const names = Array.isArray(collections) ? collections : Object.keys(collections);
  return names.find((name) => name !== "*") ?? "messages";
};

const indented = (value) => JSON.stringify(value, null, 2);

function javascript(request) {
  return `import { createClient } from "paperdb"; // npm install ${address()}/sdk/paperdb.tgz

// In the back end
const desk = createClient({ baseUrl: ${JSON.stringify(address())}, apiKey: process.env.PAPERDB_API_KEY });
const token = await desk.realtime.generateToken(${indented(request)});

// In the front end
const db = createClient({ baseUrl: ${JSON.stringify(address())}, getToken: async () => token });
const live = db.collection(${JSON.stringify(first(request))}).live({ limit: 50 });
live.subscribe(({ documents, status }) => console.log(status, documents));`;
}

/** JSON as Python: the names of three values differ, outside of strings. */
const python_ = (value) =>
  indented(value).replace(/"(?:[^"\\]|\\.)*"|\b(true|false|null)\b/g, (all, word) => ({ true: "True", false: "False", null: "None" })[word] ?? all);

function python(request) {
  const { collections, expiresIn, subject } = request;
  const more = [`expires_in=${expiresIn}`, subject && `subject=${JSON.stringify(subject)}`].filter(Boolean).join(", ");
  return `import os

from paperdb import create_sync_client  # pip install ${address()}/sdk/paperdb.zip

URL = ${JSON.stringify(address())}

# In the back end
with create_sync_client(base_url=URL, api_key=os.environ["PAPERDB_API_KEY"]) as desk:
    token = desk.realtime.generate_token(${python_(collections).replaceAll("\n", "\n    ")}, ${more})

# With the token, which sees what its rules allow
with create_sync_client(base_url=URL, api_key=token) as db:
    for document in db.collection(${JSON.stringify(first(request))}).find(limit=50):
        print(document)`;
}

export const LANGUAGES = [
  { label: "curl", make: curl },
  { label: "JavaScript", make: javascript },
  { label: "Python", make: python },
];
