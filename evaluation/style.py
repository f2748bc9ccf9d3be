"""The report's style sheet: one column, wide tables that scroll, light and dark by the reader's own setting."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --panel: #f5f7fa; --ink: #1c2430; --soft: #566272; --line: #d7dde5;
  --better: #0b5cad; --worse: #b34700; --bar: #cfe3fb; --heat: #7db8f5;
  --c0: #b36b00; --c1: #c2185b; --c2: #0b6bcb; --c3: #00735c; --c4: #6a3fb5; --c5: #5b6776; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #10151c; --panel: #18202a; --ink: #e6edf3; --soft: #9aa7b5; --line: #2d3845;
    --better: #6cb6ff; --worse: #ffa657; --bar: #21456b; --heat: #2f6db0;
    --c0: #ffb703; --c1: #ff5d8f; --c2: #3fa7ff; --c3: #35d0ac; --c4: #b388eb; --c5: #9aa7b5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 2rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
p, summary, .legend, figcaption, dd, dt { overflow-wrap: anywhere; }
header p { max-width: 75ch; color: var(--soft); margin: 0; }
section p { max-width: 85ch; color: var(--soft); font-size: .92rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; white-space: normal; min-width: 7.5em; max-width: 24em; overflow-wrap: anywhere; }
thead th:not(:first-child) { white-space: normal; overflow-wrap: break-word; max-width: 14em; }
.charts > *, .smalls > * { min-width: 0; }
thead th { font-size: .85rem; color: var(--soft); font-weight: 600; }
tbody th { font-weight: 500; }
th small { display: block; color: var(--soft); font-weight: 400; }
tr.difference th, tr.difference td { border-top: 2px solid var(--line); background: var(--panel); }
td.better { color: var(--better); font-weight: 600; }
td.worse { color: var(--worse); font-weight: 600; }
td.same { color: var(--soft); }
#classes { table-layout: fixed; min-width: 34em; }
td.bar { background: linear-gradient(to right, var(--bar) var(--share), transparent var(--share)) no-repeat .3rem 50%;
  background-size: calc(100% - 5rem) 60%; }
table.facts { width: auto; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
td.bar { min-width: 8.5em; }
thead th.words { text-align: left; }
td.heat { background: color-mix(in srgb, var(--heat) var(--share), transparent); }
td small { display: block; color: var(--soft); font-weight: 400; font-size: .78rem; }
td.heat small { color: inherit; }
tr.interval th, tr.interval td { color: var(--soft); font-size: .85rem; border-bottom: 2px solid var(--line); }
tr.group th { border-top: 2px solid var(--line); color: var(--soft); font-size: .85rem; font-weight: 600; }
td.text { text-align: left; white-space: normal; min-width: 16em; color: var(--soft); font-size: .9rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin-top: 1rem; font-size: .9rem; }
a { color: var(--better); text-underline-offset: .2em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 150px), 1fr)); gap: .75rem;
  margin: 0 0 1.25rem; padding: 0; }
.tiles div { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.6rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tiles small { display: block; font-size: .8rem; color: var(--soft); }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--soft); }
figure { margin: 0 0 1.5rem; }
figure.frame { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
figure.frame img { display: block; width: 100%; height: auto; }
figure.frame img.bev { max-width: 760px; margin: 0 auto; }
figure.frame figcaption { padding: .6rem .9rem; font-size: .9rem; color: var(--soft); overflow-wrap: anywhere; }
figcaption b { color: var(--ink); margin-right: .5rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 1.25rem; }
figure.chart { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: .75rem; margin: 0; }
.smalls { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 215px), 1fr)); gap: .9rem; }
@media (max-width: 500px) { .smalls { grid-template-columns: 1fr 1fr; } }
figure.small { margin: 0; }
figure.small figcaption { font-size: .8rem; color: var(--soft); }
figure.small figcaption b { margin-right: .3rem; }
svg.key { display: inline-block; width: 26px; height: 8px; margin-right: .45em; }
polyline.d1 { stroke-dasharray: 7 2; } polyline.d2 { stroke-dasharray: 4 2; } polyline.d3 { stroke-dasharray: 2 2; }
polyline.d4 { stroke-dasharray: 8 2 2 2; }
.intervals { max-width: 560px; }
.intervals svg text { font-size: 12px; }
svg .zero { stroke: var(--ink); stroke-width: 1; }
svg line.better, svg line.worse, svg line.unclear { stroke-width: 2.5; }
svg .better { stroke: var(--better); } svg .worse { stroke: var(--worse); } svg .unclear { stroke: var(--soft); }
circle { stroke-width: 2; fill: var(--panel); }
circle.better { fill: var(--better); } circle.worse { fill: var(--worse); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
polyline.c0 { stroke: var(--c0); } polyline.c1 { stroke: var(--c1); } polyline.c2 { stroke: var(--c2); }
polyline.c3 { stroke: var(--c3); } polyline.c4 { stroke: var(--c4); } polyline.c5 { stroke: var(--c5); }
.legend { display: inline-flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; color: var(--soft); }
.legend i { display: inline-block; width: 1.1em; height: 3px; margin-right: .4em; vertical-align: middle; }
i.c0 { background: var(--c0); } i.c1 { background: var(--c1); } i.c2 { background: var(--c2); }
i.c3 { background: var(--c3); } i.c4 { background: var(--c4); } i.c5 { background: var(--c5); }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: .8rem 1rem; overflow-x: auto; }
code { font: .88rem/1.5 ui-monospace, "SF Mono", "DejaVu Sans Mono", monospace; }
@media print { body { max-width: none; } figure { break-inside: avoid; } }
"""
