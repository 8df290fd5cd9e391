"""The page's pieces of HTML: pictures, downloads, what is known of them. All text is escaped."""

import html
from typing import Any

from biggan_jax.app import forms, recipes
from biggan_jax.app.studio import Nearest, Shown, Studio

CSS = """
.shots { display: grid; gap: 6px; margin: 0;
  grid-template-columns: repeat(auto-fill, minmax(52px, 1fr)); }
@media (min-width: 900px) {
  .shots { grid-template-columns: repeat(var(--columns), minmax(0, var(--widest))); }
}
.shots figure { margin: 0; min-width: 0; }
.shots img, .film { width: 100%; display: block; border-radius: 3px; }
.pixels img, .pixels .film { image-rendering: pixelated; }
.shots a { display: block; line-height: 0; }
.shots img { margin: 0 !important; }
.shots figcaption { font-size: 12px; line-height: 1.4; margin: 0 !important; text-align: center;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; color: var(--body-text-color); }
.film { max-width: 512px; background: #808080; }
.wide { max-width: 100%; height: auto; display: block; background: white; }
.downloads { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 10px 0 0; padding: 0;
  list-style: none; }
.downloads li { margin: 0; padding: 0; }
.downloads a, .words a { color: var(--body-text-color); text-decoration: underline;
  display: inline-block; padding: 4px 0; }
.facts { font-size: 13px; color: var(--body-text-color); margin: 10px 0 0; }
.problem { padding: 10px 12px; border-left: 4px solid #b91c1c; margin: 0;
  background: var(--background-fill-secondary); color: var(--body-text-color); }
.pair { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); }
.pair h3, .head h1 { margin: 0 0 6px; }
.pair .shots { grid-template-columns: repeat(auto-fill, minmax(56px, 1fr)); }
.words pre { overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
button[role="tab"].selected { color: var(--body-text-color) !important; }
a:focus-visible, video:focus-visible { outline: 3px solid #2563eb; outline-offset: 2px; }
"""


def head(studio: Studio) -> str:
    """Returns the title of the page."""
    model = studio.model
    size = model.config.model.resolution
    known = f"{len(model.class_names):,} classes, {size} x {size} pixels"
    return f'<div class="head"><h1>{_text(model.title)}</h1><p>{known}</p></div>'


def first_look(studio: Studio) -> str:
    """Returns the first picture, to stand in the page while its own program is still loading."""
    source = f"/api/images?{recipes.query(recipes.Page().images(), format='sheet')}"
    style = (
        "position: absolute; left: 24px; top: 120px; z-index: 1; border-radius: 3px;"
        " width: min(512px, calc(100vw - 48px));"
    )
    style += " image-rendering: pixelated;" if _look(studio) else ""
    return f"""<img id="first-look" src="{_text(source)}" style="{style}"
  alt="the first pictures; the page is loading">
<script>
new MutationObserver((_, watch) => {{
  if (!document.querySelector("#picture img")) return;
  document.getElementById("first-look").remove();
  watch.disconnect();
}}).observe(document.body, {{childList: true, subtree: true}});
</script>
"""


def pictures(studio: Studio, recipe: recipes.Images, shown: Shown) -> str:
    """Returns the images with their downloads and what is known of them."""
    links = [
        (f"/api/images?{recipes.query(recipe, format='sheet')}", "sheet.png", "Sheet (PNG)"),
        (f"/api/images?{recipes.query(recipe, format='zip')}", "images.zip", "Images (zip)"),
        (f"/api/images?{recipes.query(recipe, format='npz')}", "images.npz", "Arrays (npz)"),
    ]
    return grid(studio, recipe, shown) + downloads(links) + facts(studio, recipe, shown)


def grid(studio: Studio, recipe: recipes.Images, shown: Shown) -> str:
    """Returns the images, each a link to itself as a file."""
    cells = []
    for i, caption in enumerate(shown.captions):
        query = recipes.query(recipe, format="image", number=i)
        source = _text(f"/api/images?{query}")
        alt = f"image {shown.numbers[i]} of seed {recipe.seed}, {caption}: download"
        cells.append(
            f'<figure><a href="{source}" download="{forms.name(shown, i)}">'
            f'<img src="{source}" alt="{_text(alt)}"></a>'
            f"<figcaption>{_text(caption)}</figcaption></figure>"
        )
    widest = max(96, studio.model.config.model.resolution)
    style = f"--columns: {shown.columns}; --widest: {widest}px"
    shots = f'<div class="shots" style="{style}">{"".join(cells)}</div>'
    return f'<div class="{_look(studio)}">{shots}</div>'


def facts(studio: Studio, recipe: recipes.Images, shown: Shown) -> str:
    """Returns a line: which weights, truncation, statistics, dtype, and the time."""
    known = studio.facts(recipe)
    words = [
        known["model"],
        "EMA weights" if known["weights"] == "averaged" else "raw weights, no EMA",
        studio.model.describe(recipe.truncation, recipe.mode),
        f"BN statistics: {known['statistics']}",
        known["dtype"],
        f"{1e3 * shown.seconds / len(shown.images):,.1f} ms an image",
    ]
    return f'<p class="facts" role="status">{_text("; ".join(words))}</p>'


def film(source: str, what: str, look: str = "") -> str:
    """Returns a video that plays over and over."""
    return (
        f'<div class="{look}"><video class="film" controls loop autoplay muted playsinline'
        f' aria-label="{_text(what)}" src="{_text(source)}"></video></div>'
    )


def walked(studio: Studio, recipe: recipes.Walk, frames: int) -> str:
    """Returns a walk with its downloads."""
    source = f"/api/walk?{recipes.query(recipe)}"
    kinds = (("mp4", "MP4"), ("gif", "GIF"), ("png", "Sheet (PNG)"))
    links = [
        (f"/api/walk?{recipes.query(recipe, format=form)}", f"walk.{form}", name)
        for form, name in kinds
    ]
    shown = film(source, f"a walk of {frames} frames", _look(studio))
    return shown + downloads(links) + f'<p class="facts" role="status">{frames} frames</p>'


def nearest(recipe: recipes.Images, found: Nearest, network: str) -> str:
    """Returns the images with the real ones nearest to them."""
    query = recipes.query(recipe)
    first = min(len(found.shown.images), forms.NEAREST_ROWS)
    known = found.near.ratios[:, 0]
    below = int((known < 1).sum())
    words = (
        f"{below} of {len(known)} are nearer to a real image than 99 of 100 real ones are to each"
        f" other (below 1 of the threshold), as {network} sees them."
    )
    alt = f"the first {first} images, a row each, beside the real images nearest to them"
    source = _text(f"/api/nearest?{query}")
    picture = f'<img class="wide" src="{source}" alt="{_text(alt)}">'
    links = [
        (f"/api/nearest?{recipes.query(recipe, format='png')}", "nearest.png", "Sheet (PNG)"),
        (f"/api/nearest?{recipes.query(recipe, format='json')}", "nearest.json", "Numbers (JSON)"),
    ]
    return picture + downloads(links) + f'<p class="facts" role="status">{_text(words)}</p>'


def compared(studio: Studio, pairs: list[tuple[recipes.Images, Shown]]) -> str:
    """Returns the same images of several models beside each other."""
    parts = [
        f"<div><h3>{_text(name)}</h3>{grid(studio, recipe, shown)}</div>"
        for recipe, shown in pairs
        for name in [studio.facts(recipe)["model"]]
    ]
    return f'<div class="pair">{"".join(parts)}</div>'


def training(step: int, steps: list[int]) -> str:
    """Returns one sheet of the training, and the film."""
    links = [
        (f"/api/timelapse?format={form}", f"training.{form}", f"Time-lapse ({form.upper()})")
        for form in ("mp4", "gif")
    ]
    alt = f"samples at step {step:,} of {steps[-1]:,}"
    picture = f'<img class="wide" src="/api/timelapse?step={step}" alt="{alt}">'
    return picture + downloads(links)


def scores(query: str, words: str) -> str:
    """Returns the curve of the scores with what it says."""
    return (
        f'<img class="wide" src="/api/scores?{_text(query)}" alt="{_text(words)}">'
        f'<p class="facts">{_text(words)}</p>'
    )


def problem(sentence: str) -> str:
    """Returns a sentence about what went wrong; nothing for an empty one."""
    return f'<p class="problem" role="alert">{_text(sentence)}</p>' if sentence else ""


def programs(origin: str, query: str) -> str:
    """Returns the same for programs: lines for curl."""
    lines = "\n".join(
        f"curl -o {name} '{origin}/api/images?{query}{'&' * bool(query)}format={form}'"
        for form, name in (("sheet", "sheet.png"), ("npz", "images.npz"))
    )
    return (
        '<div class="words"><p>What is set here, for programs:</p>'
        f'<pre tabindex="0" aria-label="commands">{_text(lines)}</pre>'
        '<p>All fields: <a href="/openapi.json">/openapi.json</a>; the model:'
        ' <a href="/api/model">/api/model</a>.</p></div>'
    )


def downloads(links: list[tuple[str, str, str]]) -> str:
    """Returns a list of links to files: address, name of the file, text."""
    items = "".join(
        f'<li><a href="{_text(address)}" download="{name}">{_text(text)}</a></li>'
        for address, name, text in links
    )
    return f'<ul class="downloads" aria-label="downloads">{items}</ul>'


def _look(studio):
    return "pixels" if studio.model.config.model.resolution < 128 else ""


def _text(value: Any) -> str:
    return html.escape(str(value))
