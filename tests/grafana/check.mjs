// Checks docker/grafana/dashboards/*.json against the types that Grafana generates from its schema:
// writes each dashboard, and each panel with the options of its type, as TypeScript, and runs the
// compiler. Misspelt and unknown fields are errors. Run with node, from a directory where the
// package.json beside this file is installed:
//   node check.mjs DASHBOARD.json...
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";

// The panel types in use, and the modules with the types of their options.
const PANELS = { bargauge: "BarGauge", gauge: "Gauge", stat: "Stat", timeseries: "TimeSeries", table: "Table" };
const options = Object.entries(PANELS).map(
  ([type, name]) =>
    `import * as ${type} from "@grafana/schema/dist/esm/raw/composable/${type}/panelcfg/x/${name}PanelCfg_types.gen";`,
);
const lines = [
  'import * as schema from "@grafana/schema/dist/esm/raw/dashboard/x/dashboard_types.gen";',
  ...options,
  // JSON has values instead of enums, and omitted options have their defaults.
  "type Plain<T> = T extends string ? `${T}` : T extends number ? T : T extends (infer U)[] ? Plain<U>[]",
  "  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;",
  "type Some<T> = T extends (infer U)[] ? Some<U>[] : T extends object ? { [K in keyof T]?: Some<T[K]> } : T;",
  'type Field = Omit<Plain<schema.FieldConfigSource>, "defaults">;',
  'type Defaults = Omit<Plain<schema.FieldConfig>, "custom">;',
  'type Of<Options, Custom> = Omit<Plain<schema.Panel>, "options" | "fieldConfig" | "targets"> & {',
  "  options: Some<Plain<Options>>;",
  "  fieldConfig: Field & { defaults: Defaults & { custom?: Some<Plain<Custom>> } };",
  "  targets: (Target | SqlTarget)[];",
  "};",
  // The package has no types for Prometheus' queries; these are the fields that the data source
  // reads.
  "interface Target {",
  "  refId: string; datasource: Plain<schema.DataSourceRef>; expr: string; legendFormat: string; instant?: boolean;",
  '  range?: boolean; interval?: string; format?: "time_series" | "table" | "heatmap"; hide?: boolean;',
  "}",
  // Nor has it any for PostgreSQL's.
  "interface SqlTarget {",
  '  refId: string; datasource: Plain<schema.DataSourceRef>; rawSql: string; format: "time_series" | "table";',
  '  rawQuery: true; editorMode: "code";',
  "}",
];
const custom = new Set(["timeseries"]);
const origins = [];
const put = (origin, name, type, value) => {
  origins[lines.length + 1] = origin;
  lines.push(`export const ${name}: ${type} = ${JSON.stringify(value)};`);
};
process.argv.slice(2).forEach((path, nth) => {
  const { panels, ...rest } = JSON.parse(readFileSync(path, "utf8"));
  put(path, `dashboard${nth}`, "Plain<schema.Dashboard>", rest);
  for (const panel of panels) {
    const origin = `${path}, panel ${panel.id} (${panel.title})`;
    if (panel.type !== "row" && !(panel.type in PANELS)) throw new Error(`${origin}: no types for ${panel.type}`);
    const type = panel.type === "row" ? "Plain<schema.RowPanel>"
      : `Of<${panel.type}.Options, ${custom.has(panel.type) ? `${panel.type}.FieldConfig` : "Record<string, never>"}>`;
    put(origin, `panel${nth}_${panel.id}`, type, panel);
  }
});
writeFileSync("check.ts", `${lines.join("\n")}\n`);
try {
  const tsc = ["node_modules/typescript/bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--target", "es2022"];
  execFileSync(process.execPath, [...tsc, "--module", "nodenext", "check.ts"], { encoding: "utf8" });
} catch (error) {
  const said = String(error.stdout).replace(/check\.ts\((\d+),\d+\)/g, (place, line) => origins[line] ?? place);
  console.error(said || error);
  process.exit(1);
}
