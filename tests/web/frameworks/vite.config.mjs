// One build of all pages. Packages are links to where tests have installed them once.
export default {
  base: "./",
  logLevel: "error",
  resolve: { preserveSymlinks: true },
  build: { target: "es2022", minify: false, modulePreload: false },
};
