// Compiles src/*.sol into artifacts/<Contract>.json.  The same sources give the same bytes on every machine:
// the compiler is pinned, and no metadata is appended to the code.
//
//   node build.js          writes the artifacts
//   node build.js --check  writes nothing; fails when a build would change, add or remove an artifact
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import solc from "solc";

const here = dirname(fileURLToPath(import.meta.url));
const sourcesDir = join(here, "src");
const artifactsDir = join(here, "artifacts");

function compile() {
  const names = readdirSync(sourcesDir).filter((name) => name.endsWith(".sol")).sort();
  const sources = names.map((name) => [name, { content: readFileSync(join(sourcesDir, name), "utf8") }]);
  const output = JSON.parse(
    solc.compile(
      JSON.stringify({
        language: "Solidity",
        sources: Object.fromEntries(sources),
        settings: {
          evmVersion: "cancun",
          optimizer: { enabled: true, runs: 200 },
          metadata: { appendCBOR: false, bytecodeHash: "none" },
          outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] } },
        },
      }),
    ),
  );
  // A warning fails the build too: nobody reads the output of a build that succeeds.
  if (output.errors?.length) {
    throw new Error(output.errors.map((error) => error.formattedMessage).join("\n"));
  }
  return Object.values(output.contracts).flatMap(Object.entries);
}

function artifacts() {
  const files = new Map();
  for (const [contractName, { abi, evm }] of compile()) {
    const bytecode = evm.bytecode.object;
    if (bytecode === "") continue; // an interface
    const artifact = {
      contractName,
      abi,
      bytecode: `0x${bytecode}`,
      deployedBytecode: `0x${evm.deployedBytecode.object}`,
    };
    files.set(`${contractName}.json`, `${JSON.stringify(artifact, null, 2)}\n`);
  }
  return files;
}

const built = artifacts();
mkdirSync(artifactsDir, { recursive: true });
const present = readdirSync(artifactsDir);
const stale = present.filter((name) => !built.has(name));
const changed = [...built].filter(([name, text]) => {
  const file = join(artifactsDir, name);
  return !existsSync(file) || readFileSync(file, "utf8") !== text;
});

if (process.argv.includes("--check")) {
  const findings = [...stale.map((name) => `${name}: no contract of this name`), ...changed.map(([name]) => `${name}: other bytes`)];
  if (findings.length) {
    console.error(`contracts/artifacts is not what the sources build; run "node build.js":\n${findings.join("\n")}`);
    process.exitCode = 1;
  }
} else {
  for (const name of stale) rmSync(join(artifactsDir, name));
  for (const [name, text] of changed) writeFileSync(join(artifactsDir, name), text);
}
