// The linter of the JavaScript: `npx eslint@10`, with no other package. tests/web/test_lint.py runs it in CI, over the
// scripts of HTML pages, too.

const rules = {
  "array-callback-return": "error",
  "constructor-super": "error",
  "default-case-last": "error",
  eqeqeq: ["error", "always", { null: "ignore" }],
  "for-direction": "error",
  "getter-return": "error",
  "no-async-promise-executor": "error",
  "no-case-declarations": "error",
  "no-class-assign": "error",
  "no-compare-neg-zero": "error",
  "no-cond-assign": "error",
  "no-const-assign": "error",
  "no-constant-binary-expression": "error",
  "no-constant-condition": ["error", { checkLoops: "allExceptWhileTrue" }],
  "no-constructor-return": "error",
  "no-debugger": "error",
  "no-dupe-args": "error",
  "no-dupe-class-members": "error",
  "no-dupe-else-if": "error",
  "no-dupe-keys": "error",
  "no-duplicate-case": "error",
  "no-duplicate-imports": "error",
  "no-empty": "error",
  "no-empty-pattern": "error",
  "no-eval": "error",
  "no-ex-assign": "error",
  "no-fallthrough": "error",
  "no-func-assign": "error",
  "no-global-assign": "error",
  "no-implied-eval": "error",
  "no-import-assign": "error",
  "no-irregular-whitespace": "error",
  "no-loss-of-precision": "error",
  "no-misleading-character-class": "error",
  "no-new-native-nonconstructor": "error",
  "no-prototype-builtins": "error",
  "no-redeclare": "error",
  "no-regex-spaces": "error",
  "no-return-assign": ["error", "except-parens"],
  "no-self-assign": "error",
  "no-self-compare": "error",
  "no-setter-return": "error",
  "no-shadow-restricted-names": "error",
  "no-sparse-arrays": "error",
  "no-template-curly-in-string": "error",
  "no-this-before-super": "error",
  "no-throw-literal": "error",
  "no-undef": "error",
  "no-unexpected-multiline": "error",
  "no-unmodified-loop-condition": "error",
  "no-unreachable": "error",
  "no-unreachable-loop": "error",
  "no-unsafe-finally": "error",
  "no-unsafe-negation": "error",
  "no-unsafe-optional-chaining": "error",
  "no-unused-expressions": ["error", { allowShortCircuit: true, allowTernary: true }],
  "no-unused-labels": "error",
  "no-unused-private-class-members": "error",
  "no-unused-vars": ["error", { argsIgnorePattern: "^_", varsIgnorePattern: "^_", args: "after-used" }],
  "no-useless-assignment": "error",
  "no-useless-backreference": "error",
  "no-useless-catch": "error",
  "no-useless-computed-key": "error",
  "no-useless-escape": "error",
  "no-useless-rename": "error",
  "no-useless-return": "error",
  "no-var": "error",
  "object-shorthand": "error",
  "prefer-const": "error",
  "prefer-promise-reject-errors": "error",
  "prefer-rest-params": "error",
  "prefer-spread": "error",
  "require-atomic-updates": "error",
  "require-yield": "error",
  "use-isnan": "error",
  "valid-typeof": "error",
};

const globals = (names) => Object.fromEntries(names.split(" ").map((name) => [name, "readonly"]));
/** What browsers, Node 18 and every other place in which the SDK runs have. It uses no other global. */
const everywhere = "AbortController URL URLSearchParams atob clearTimeout console queueMicrotask setTimeout";
const node = `${everywhere} Response btoa fetch process setImmediate`;
const dashboard =
  "AbortController Blob TextDecoder URL URLSearchParams WebSocket addEventListener atob cancelAnimationFrame clearInterval " +
  "clearTimeout console crypto document fetch history localStorage location navigator performance requestAnimationFrame " +
  "sessionStorage setInterval setTimeout";
const browser = `${everywhere} document fetch localStorage location navigator window`;

/** The ways in which a text could become markup or code. `paperdb_trio/web/dashboard/dom.js` makes elements without them. */
const MARKUP = "innerHTML outerHTML insertAdjacentHTML setHTMLUnsafe setHTML createContextualFragment parseFromString parseHTMLUnsafe srcdoc";
const noMarkup = {
  "no-restricted-properties": [
    "error",
    ...MARKUP.split(" ").map((property) => ({ property, message: "Text must not become markup: use h() of dom.js." })),
    ...["write", "writeln"].map((property) => ({ object: "document", property })),
  ],
  "no-restricted-globals": ["error", "DOMParser", "XSLTProcessor"],
  "no-restricted-syntax": [
    "error",
    { selector: "CallExpression[callee.property.name=/^setAttribute(NS)?$/] > Literal[value=/^(on|style$)/i]", message: "No handler or style as a text." },
    { selector: "Literal[value=/^\\s*javascript:/i]", message: "No code in an address." },
    { selector: "ImportExpression", message: "Modules are imported by name." },
  ],
  "no-new-func": "error",
  "no-script-url": "error",
};

const language = (names, ecmaVersion) => ({ ecmaVersion, sourceType: "module", globals: globals(names) });

export default [
  { linterOptions: { reportUnusedDisableDirectives: "error" }, rules },
  { files: ["**/sdk/*.js"], languageOptions: language(everywhere, 2022) },
  { files: ["**/dashboard/*.js"], rules: noMarkup, languageOptions: language(dashboard, 2025) },
  { files: ["**/*.mjs"], ignores: ["**/*.html.mjs"], languageOptions: language(node, 2025) },
  { files: ["tests/web/frameworks/*.mjs"], languageOptions: language(`${browser} MutationObserver WebSocket crypto window`, 2025) },
  { files: ["**/*.html.mjs"], languageOptions: language(browser, 2025) },
];
