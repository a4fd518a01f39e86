"""The style sheet of the page: light and dark, 360 px to wide, paper."""

__all__ = ["STYLE"]

LIGHT = """--ground:#f7f7f5;--card:#fff;--ink:#1d2126;--soft:#57606a;--rule:#d8dbdf;--wash:#eef3f8;
--static:#0072b2;--dynamic:#b84a00;--full:#33383e;--exits:#6f7780;--other:#8a5a92;"""
DARK = """--ground:#14171a;--card:#1c2024;--ink:#e6e8ea;--soft:#a4acb5;--rule:#343a41;--wash:#232b34;
--static:#6cb8ec;--dynamic:#f29a5c;--full:#d0d4d9;--exits:#98a1ab;--other:#c9a0d0;"""
STYLE = f"""
:root{{color-scheme:light dark;{LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}
*{{box-sizing:border-box}}
body{{margin:0 auto;padding:0 1rem 3rem;max-width:60rem;background:var(--ground);color:var(--ink);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}}
h1{{margin:1.5rem 0 .25rem;font-size:clamp(1.5rem,5vw,2.1rem);line-height:1.2}}
h2{{margin:0 0 .6rem;font-size:1.1rem}}h3{{margin:1rem 0 .4rem;font-size:1rem}}
p{{margin:.35rem 0}}.soft,figcaption,caption{{color:var(--soft);font-size:.9rem}}
section{{margin:1rem 0;padding:1.1rem 1.25rem;background:var(--card);border:1px solid var(--rule);
border-radius:10px}}
.verdict{{border-left:6px solid var(--full)}}.verdict.static{{border-left-color:var(--static)}}
.verdict.dynamic{{border-left-color:var(--dynamic)}}
.word{{margin:0;font-size:clamp(1.4rem,5vw,1.9rem);font-weight:700;line-height:1.25}}
.static .word{{color:var(--static)}}.dynamic .word{{color:var(--dynamic)}}
ul{{margin:.3rem 0;padding-left:1.1rem}}figure{{margin:0}}
.scroll{{overflow-x:auto;overflow-wrap:normal}}
:focus-visible{{outline:3px solid var(--static);outline-offset:2px}}
table{{width:100%;border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}}
caption{{caption-side:bottom;padding:.5rem .4rem 0;text-align:left;overflow-wrap:anywhere}}
th,td{{padding:.4rem .55rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}}
th:first-child{{text-align:left}}
thead th{{color:var(--soft);font-size:.85rem;vertical-align:bottom;white-space:normal}}
tbody th{{font-weight:500}}.chosen>*{{background:var(--wash);font-weight:650}}
svg{{display:block;width:100%;height:auto;max-width:46rem}}
.tick{{fill:var(--soft);font-size:13px}}.grid{{stroke:var(--rule)}}.axis{{stroke:var(--exits)}}
.line{{fill:none;stroke-width:2}}.line.exits{{stroke:var(--exits);stroke-dasharray:2 4}}
.line.snell,.line.loss{{stroke:var(--dynamic)}}.line.confidence{{stroke:var(--other);stroke-dasharray:7 4}}
.line.selection{{stroke:var(--static)}}
.dot{{fill:var(--exits)}}.bar{{fill:var(--dynamic)}}
.mark{{stroke:var(--card);stroke-width:1.5}}.mark.full{{fill:var(--full)}}.mark.static{{fill:var(--static)}}
.mark.dynamic{{fill:var(--dynamic)}}.mark.hollow{{fill:var(--card);stroke:var(--dynamic);stroke-width:2.5}}
.whisker{{stroke-width:1.5;stroke:var(--exits)}}
details{{margin-top:.5rem}}summary{{cursor:pointer;color:var(--static);font-size:.92rem}}
.pictures{{display:flex;flex-wrap:wrap;gap:.75rem;margin:0;padding:0;list-style:none}}
.pictures li{{width:6.1rem;font-size:.82rem;color:var(--soft)}}
.pictures img{{display:block;width:5.6rem;height:5.6rem;object-fit:contain;margin-bottom:.2rem;
border:1px solid var(--rule);border-radius:4px;image-rendering:auto}}
.pictures img.tiny{{image-rendering:pixelated}}
@media (max-width:32rem){{section{{padding:.9rem}}.tick{{font-size:18px}}}}
@media print{{body{{max-width:none;background:none}}section{{break-inside:avoid;border:none;padding:.5rem 0}}
.scroll{{overflow:visible}}summary{{display:none}}}}
"""
