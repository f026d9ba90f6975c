/**
 * One document: its JSON to edit, what would change, what it was.
 *
 * Law: a save says which version it is of (`If-Match`), so that it never overwrites what somebody else has written
 * meanwhile; then the person decides. The text goes to the server as it is: no number of it passes through JavaScript.
 */

import { h, show } from "./dom.js";
import { historyView } from "./history.js";
import { difference, editable, members, problem } from "./json-text.js";
import { pathOf } from "./session.js";
import { actions, button, confirm, dialog, diffView, field, newId, say, sentence, tabs, time } from "./ui.js";

const compare = (before, after, label) => diffView(difference(before, after), label);

/**
 * Edit a document, or make one if `id` is null, of `text` and at the id `key` if these are given. `restored`: what that brings
 * back, for the record. Resolves to its id once it is saved or deleted, else undefined.
 */
export async function openEditor({ session, name, id = null, text, key = "", restored = "" }) {
  const path = id === null ? null : pathOf(name, id);
  const loaded = path && (await session.call("GET", path));
  const editor = new Editor({ session, name, id, path, loaded, text, key, restored });
  const title = id === null ? `New document in ${name}` : `${name} / ${id}`;
  const result = await dialog(title, (close) => editor.build(close), { wide: true, mayClose: () => editor.mayClose() });
  editor.close();
  return result;
}

class Editor {
  #session;
  #name;
  #id;
  #path;
  #etag = null; // of the version that is edited
  #base = "{}"; // its text
  #times = null;
  #restored; // what a save brings back, for the record
  #close;
  #end = () => {};
  #area = h("textarea", { rows: "18", spellcheck: "false", autocapitalize: "off", autofocus: true });
  #key = h("input", { autocomplete: "off", spellcheck: "false", maxlength: "128" });
  #wrong = h("p", { class: "refused", role: "alert", id: newId("wrong") });
  #news = h("div", { role: "status" });
  #facts = h("p", { class: "hint" });
  #panel = h("div", { class: "stack" });

  constructor({ session, name, id, path, loaded, text, key, restored }) {
    this.#session = session;
    this.#name = name;
    this.#id = id;
    this.#path = path;
    this.#key.value = key;
    this.#restored = restored;
    if (loaded) this.#take(loaded);
    this.#area.value = text ?? this.#base;
    if (loaded === null && text === undefined) this.#area.value = "{\n  \n}";
    this.#area.setAttribute("aria-describedby", this.#wrong.id);
    this.#area.addEventListener("input", () => this.#check());
    this.#area.addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && (event.key === "s" || event.key === "Enter")) {
        event.preventDefault();
        void this.#save();
      }
    });
    if (id !== null && session.client.realtime) this.#follow();
  }

  close() {
    this.#end();
  }

  get #isChanged() {
    return this.#area.value.trim() !== (this.#id === null ? "{\n  \n}" : this.#base);
  }

  mayClose() {
    if (!this.#isChanged || this.#area.readOnly) return true;
    void confirm("Leave without saving?", "Your changes to this document are not saved.", "Leave", { danger: true }).then(
      (yes) => yes && this.#close(),
    );
    return false;
  }

  /** This version is the one that is edited. */
  #take({ text, etag }) {
    const about = Object.fromEntries(members(text).map((member) => [member.name, member.text]));
    this.#etag = etag;
    this.#base = editable(text);
    this.#times = [about.createdAt, about.updatedAt].map((found) => found && time(JSON.parse(found)));
    const [created, updated] = this.#times;
    const words = [`Version ${etag?.replace(/W\/|"/g, "") ?? "unknown"}`, created && `created ${created}`, updated && `updated ${updated}`];
    show(this.#facts, words.filter(Boolean).join(" · "));
  }

  /** Tell of changes that others make while it is open. */
  #follow() {
    const filter = { _id: this.#id };
    const look = async () => {
      const now = await this.#read();
      if (now.etag === this.#etag) return;
      if (now.text !== null && !this.#isChanged) {
        this.#take(now);
        this.#area.value = this.#base;
        show(this.#news, h("p", { class: "note" }, "Somebody changed this document just now; you see the new version."));
      } else this.#tell(now);
    };
    const quietly = () => look().catch(() => {}); // a save will tell
    this.#end = this.#session.client.realtime.subscribe(this.#name, quietly, { filter, onError: () => {} });
  }

  /** What the server has now. */
  async #read() {
    try {
      return await this.#session.call("GET", this.#path);
    } catch (error) {
      if (error.status !== 404) throw error;
      return { text: null, etag: null };
    }
  }

  #tell(now) {
    const what = now.text === null ? "Somebody deleted this document while you edited it." : "Somebody changed this document while you edited it.";
    show(this.#news, h("div", { class: "note row" }, h("span", { class: "grow" }, what), button("Compare", () => this.#conflict())));
  }

  build(close) {
    this.#close = close;
    const { canWrite, hasKey } = this.#session;
    this.#area.readOnly = !canWrite;
    const label = canWrite ? "Document as JSON" : "Document as JSON, which this key may read only";
    const edit = () => [
      this.#id === null && field("Id", this.#key, "Left empty, the server makes one."),
      field(label, this.#area),
      this.#wrong,
      this.#facts,
    ];
    const views = [
      ["edit", "Edit", edit],
      ["changes", "What changes", () => compare(this.#base, this.#area.value, "What a save changes")],
      this.#id !== null && hasKey && ["history", "History", () => this.#history()],
    ].filter(Boolean);
    const foot = actions(
      canWrite && button("Save", () => this.#save(), { class: "primary", "aria-keyshortcuts": "Control+S" }),
      canWrite && button("Lay out", () => this.#layOut()),
      h("button", { type: "button", onclick: () => this.mayClose() && close() }, "Close"),
      h("span", { class: "space" }),
      canWrite && this.#id !== null && button("Delete", () => this.#delete(), { class: "danger" }),
    );
    return [tabs(views, this.#panel), this.#news, this.#panel, foot];
  }

  #check() {
    const found = problem(this.#area.value);
    this.#area.setAttribute("aria-invalid", found !== null);
    this.#wrong.textContent = found ? `Not yet: ${found.message}` : "";
    return found;
  }

  #layOut() {
    const found = this.#check();
    if (found === null) this.#area.value = editable(this.#area.value);
    else if (found.at !== null) {
      this.#area.focus();
      this.#area.setSelectionRange(found.at, found.at + 1);
    }
  }

  async #save() {
    if (this.#check() !== null) return this.#layOut();
    const isNew = this.#id === null;
    const key = this.#key.value.trim();
    try {
      if (this.#restored) await this.#session.record("document.restore", this.#name, this.#restored);
      if (isNew && key) await this.#put(pathOf(this.#name, key), { "If-None-Match": "*" });
      else if (isNew) await this.#session.call("POST", `/${this.#name}/docs`, { body: this.#area.value });
      else await this.#put(this.#path, { "If-Match": this.#etag });
      say(isNew ? "Inserted." : "Saved.");
      return this.#close(this.#id ?? key);
    } catch (error) {
      if (!isNew && error.code === "PRECONDITION_FAILED") return this.#conflict();
      const taken = isNew && error.code === "PRECONDITION_FAILED";
      return void (this.#wrong.textContent = taken ? `There is a document with the id '${key}' already` : sentence(error));
    }
  }

  #put(path, headers) {
    return this.#session.call("PUT", path, { body: this.#area.value, headers });
  }

  async #delete() {
    const yes = await confirm("Delete this document?", `${this.#name} / ${this.#id}`, "Delete", { danger: true });
    if (!yes) return undefined;
    try {
      await this.#session.call("DELETE", this.#path, { headers: { "If-Match": this.#etag } });
      say("Deleted.");
      return this.#close(this.#id);
    } catch (error) {
      if (error.code === "PRECONDITION_FAILED" || error.code === "NOT_FOUND") return this.#conflict();
      throw error;
    }
  }

  /** Somebody else has written it: what they did, what this person did, and what to do now. */
  async #conflict() {
    const now = await this.#read();
    const mine = this.#area.value;
    const isGone = now.text === null;
    const theirs = isGone ? "" : editable(now.text);
    const choice = await dialog(isGone ? "Deleted meanwhile" : "Changed meanwhile", (close) => [
      h("p", {}, isGone
        ? "Somebody deleted this document after you opened it. Nothing of yours was written."
        : "Somebody changed this document after you opened it. Nothing was overwritten."),
      !isGone && [h("h3", {}, "What they changed"), compare(this.#base, theirs, "What they changed")],
      h("h3", {}, isGone ? "Your text" : "What your text would change in theirs"),
      compare(theirs, mine, "What your text changes"),
      actions(
        !isGone && h("button", { type: "button", class: "primary", onclick: () => close("theirs") }, "Take theirs"),
        h("button", { type: "button", autofocus: true, onclick: () => close("edit") }, isGone ? "Keep my text open" : "Go on editing mine, over theirs"),
        h("button", { type: "button", class: "danger", onclick: () => close("mine") }, isGone ? "Insert it again" : "Overwrite with mine"),
      ),
    ], { wide: true });
    if (choice === undefined) return this.#tell(now);
    show(this.#news);
    if (isGone) return choice === "mine" ? this.#again() : undefined;
    this.#take(now);
    if (choice === "theirs") [this.#area.value, this.#restored] = [this.#base, ""];
    this.#check();
    return choice === "mine" ? this.#save() : undefined;
  }

  async #again() {
    await this.#put(this.#path, { "If-None-Match": "*" });
    say("Inserted again.");
    this.#close(this.#id);
  }

  #history() {
    return historyView({
      session: this.#session,
      name: this.#name,
      id: this.#id,
      onRestore: this.#session.canWrite && ((text, seq) => {
        this.#area.value = text;
        this.#restored = `${this.#id}, back to seq ${seq}`;
        this.#check();
        this.#panel.parentNode.querySelector('[role="tab"]').click();
        say("That version is in the editor. Save it to go back to it.");
      }),
    });
  }
}
