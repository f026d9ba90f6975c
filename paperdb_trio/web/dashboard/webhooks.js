/**
 * Webhooks: where changes are posted to, how far each is, and what to do with one that fails.
 *
 * Law: a secret is shown once, when its webhook is made. The list is looked at again and again.
 */

import { h, icon, show } from "./dom.js";
import { all } from "./session.js";
import { every, showAgain, table } from "./table.js";
import { ask, button, confirm, count, field, moment, number, say, select, sentence, showOnce } from "./ui.js";

const LOOK_MS = 2000;
const PATH = "/admin.v1/webhooks";
const STATES = { live: "good", retrying: "warn", dead: "bad", paused: "" };
const of = ({ id }) => `${PATH}/${encodeURIComponent(id)}`;

export function webhooks({ session }) {
  const list = h("div", { class: "stack" });
  const notice = h("div", { role: "status" });

  async function look() {
    const { webhooks: found } = await session.get(PATH);
    show(notice);
    showAgain(list, table("Webhooks", ["State", "Posts to", "Changes of", "Behind", "Last delivery", "Last failure", null], found.map((one) => [
      h("span", { class: `badge ${STATES[one.state]}` }, one.state),
      h("span", { class: "mono" }, one.url),
      about(one),
      one.lagChanges ? count(one.lagChanges, "change") : "0",
      one.deliveredAt ? moment(one.deliveredAt) : "none yet",
      failure(one),
      [button("Test", () => test(one)), " ", turns(one).map((turn) => [turn, " "]), button("Remove", () => remove(one))],
    ]), "There are none."));
  }

  const add = async () => {
    const names = (await all(session, "/admin.v1/databases", "databases")).map(({ name }) => [name, name]);
    const url = h("input", { type: "url", required: true, placeholder: "https://example.com/hook", autofocus: true, maxlength: "2048" });
    const database = select(names, names[0]?.[0]);
    const collection = h("input", { spellcheck: "false", autocomplete: "off", maxlength: "64" });
    const filter = h("textarea", { rows: "3", spellcheck: "false", placeholder: '{"paid": true}' });
    const made = await ask("New webhook", [
      field("URL", url, "It gets each change from now on, in order, as a signed POST."),
      field("Database", database),
      field("Collection", collection, "Empty: every collection."),
      field("Filter as JSON", filter, "Empty: every document of the collection."),
    ], "Add", () => session.send("POST", PATH, {
      url: url.value, database: database.value,
      ...(collection.value && { collection: collection.value }),
      ...(filter.value.trim() && { filter: parsed(filter.value) }),
    }));
    if (made === undefined) return;
    await showOnce("The secret of the new webhook", "Secret", made.secret, "The receiver checks the signature with it. The server shows it only now.");
    await look();
  };

  async function test(one) {
    const { arrived, error, seconds } = await session.send("POST", `${of(one)}/test`);
    say(arrived ? `The test arrived in ${seconds.toFixed(2)} s.` : `The test did not arrive: ${error}`, arrived ? "good" : "bad");
  }

  /** What lets it go on, and what holds it back. */
  function turns(one) {
    const isOff = one.state === "dead" || one.state === "paused";
    return [
      one.state !== "live" && button(isOff ? "Resume" : "Try again", () => turn(one, "resume", "It goes on where it was.")),
      !isOff && button("Pause", () => turn(one, "pause", "It is paused, and stays where it is.")),
    ].filter(Boolean);
  }

  async function turn(one, what, words) {
    await session.send("POST", `${of(one)}/${what}`);
    say(words);
    await look();
  }

  async function remove(one) {
    if (!(await confirm("Remove this webhook?", `${one.url}: what was not delivered yet never will be.`, "Remove it", { danger: true }))) return;
    await session.send("DELETE", of(one));
    say("Removed.");
    await look();
  }

  const close = every(LOOK_MS, look, (error) => show(notice, h("p", { class: "note bad" }, sentence(error))));
  return {
    element: h("div", { class: "stack" }, h("div", {}, button([icon("plus"), "New webhook"], add)), notice, list),
    close,
  };
}

function about({ database, collection, filter }) {
  return [`${database} / ${collection ?? "every collection"}`, filter && [" ", h("code", {}, JSON.stringify(filter))]];
}

function failure({ error, failures, failingSince, nextTryAt, state }) {
  if (!failures) return "";
  const now = state === "dead" ? "it gave up" : nextTryAt ? ["next try at ", moment(nextTryAt)] : "it is being tried now";
  return [h("div", {}, error), h("div", { class: "hint" }, `${number(failures)} in a row since `, moment(failingSince), "; ", now)];
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`The filter is not JSON: ${error.message}`);
  }
}
