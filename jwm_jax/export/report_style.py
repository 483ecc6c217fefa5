"""The style sheet of the HTML report: readable in light and dark, on a desk and on a phone."""

STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f27; --soft: #5d6675; --line: #e1e5eb;
  --accent: #1f6feb; --warn: #8a5300; --warn-back: #fff4df; --code: #f0f2f5;
  --s0: #1f6feb; --s1: #d9480f; --s2: #2b8a3e; --s3: #9c36b5; --s4: #7a8290; --s5: #b08900; }
@media (prefers-color-scheme: dark) { :root {
  --page: #0f1218; --card: #171b23; --ink: #e6e9ef; --soft: #9aa4b5; --line: #2a303c;
  --accent: #6ea8fe; --warn: #ffc56b; --warn-back: #33270f; --code: #10141b;
  --s0: #6ea8fe; --s1: #ff8a5b; --s2: #69db7c; --s3: #da9bee; --s4: #9aa4b5; --s5: #f0cf65; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 20px 64px; }
header { margin-bottom: 24px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 20px; line-height: 1.3; margin: 0 0 4px; }
.lead { color: var(--soft); margin: 0; max-width: 75ch; }
.section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 20px 22px 22px; margin: 0 0 18px; }
.section > p.text { color: var(--soft); margin: 0 0 6px; max-width: 80ch; }
.facts { display: flex; flex-wrap: wrap; gap: 6px 8px; margin: 14px 0 0; padding: 0;
  list-style: none; }
.facts li { border: 1px solid var(--line); background: var(--card); border-radius: 999px;
  padding: 2px 12px; font-size: 13px; color: var(--soft); }
.facts b { color: var(--ink); font-weight: 600; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px;
  margin: 0 0 18px; }
.number { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 14px 18px; }
.number .value { font-size: 28px; font-weight: 650; letter-spacing: -0.02em; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
.number .label { font-size: 14px; }
.number .how { font-size: 12.5px; color: var(--soft); }
.warnings { background: var(--warn-back); color: var(--warn); border-radius: 10px; margin: 0 0 18px;
  padding: 10px 18px 10px 34px; font-size: 14.5px; }
.grid { stroke: var(--line); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr));
  gap: 16px; margin-top: 14px; }
.pictures.pairs { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
figure { margin: 14px 0 0; }
.pictures figure { margin: 0; }
figure img, figure video { display: block; width: 100%; height: auto; border-radius: 8px;
  background: #000; }
figcaption { font-size: 13.5px; color: var(--soft); margin-top: 6px; }
.scroll { overflow-x: auto; margin-top: 14px; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px;
  font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; color: var(--soft); font-size: 13.5px;
  padding-top: 8px; }
th, td { text-align: left; padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-size: 13px; color: var(--soft); font-weight: 600; }
td.n, th.n { text-align: right; padding-right: 22px; white-space: nowrap; }
table.strip { font-size: 13px; min-width: 720px; }
table.strip th, table.strip td { border: 0; padding: 3px; text-align: center; color: var(--soft); }
table.strip th[scope=row] { text-align: right; padding-right: 10px; white-space: nowrap;
  vertical-align: middle; }
table.strip img { display: block; width: 100%; border-radius: 4px; }
figure.plot { display: inline-block; vertical-align: top; width: calc(50% - 14px);
  margin-right: 12px; }
svg.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font-size: 12px; }
.chart text.name { font-size: 12.5px; }
.axis { stroke: var(--soft); stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.ghost { opacity: 0; }
.s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); }
.s3 { stroke: var(--s3); } .s4 { stroke: var(--s4); } .s5 { stroke: var(--s5); }
.dot { fill: var(--card); stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; list-style: none; margin: 4px 0 0;
  padding: 0 0 0 8px; font-size: 13.5px; color: var(--soft); }
svg.key { width: 22px; height: 10px; margin-right: 6px; }
svg.bar { display: block; width: 100%; min-width: 120px; height: 12px; }
svg.bar rect { fill: var(--accent); }
.note { color: var(--soft); font-size: 14px; }
pre { background: var(--code); border-radius: 8px; padding: 12px 16px; overflow-x: auto;
  font: 13.5px/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace; margin: 12px 0 0; }
footer { color: var(--soft); font-size: 13px; padding: 4px 2px; }
@media (max-width: 760px) { figure.plot { width: 100%; margin-right: 0; } }
@media (max-width: 600px) { main { padding: 20px 12px 40px; } .section { padding: 16px 14px 18px; }
  h1 { font-size: 24px; } .number .value { font-size: 24px; }
  .numbers { grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); } }
"""
