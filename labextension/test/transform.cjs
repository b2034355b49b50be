// TypeScript for jest, by the bundler that builds the panel.

const { transformSync } = require("esbuild");

module.exports = {
  process: (source, path) => ({
    code: transformSync(source, { loader: "ts", format: "cjs", target: "node20", sourcefile: path })
      .code,
  }),
};
