"""The page: Gradio's controls around the app's own pictures, and the link that says what is set."""

import functools
import secrets
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import fastapi
import gradio as gr

from biggan_jax.app import controls, curve, html, recipes, timelapse
from biggan_jax.app.batcher import Busy
from biggan_jax.app.studio import Studio
from biggan_jax.config import ConfigError
from biggan_jax.sample import names
from biggan_jax.sample.sheets import HoldsNaN

_PROBLEMS = (ConfigError, HoldsNaN, Busy)
# In the order in which the page's functions take and give them.
_CONTROLS = (
    "classes", "seed", "keep_z", "keep_class", "num", "truncation", "mode", "lock_z", "sort",
    "chunks", "mix", "points", "frames", "how", "loop", "fps", "against",
)  # fmt: skip


def first(studio: Studio) -> None:
    """Makes the first picture, so that nobody waits for a compiler."""
    # Their times have the compiler's in them; statistics for a truncation are another program.
    studio.images(recipes.Images(seed=1, num=1, truncation=1.0))
    studio.images(recipes.Images(seed=1, num=1))
    studio.images(recipes.Page().images())
    if studio.index is not None:
        studio.nearest(recipes.Page().images())


def mount(app: fastapi.FastAPI, studio: Studio) -> None:
    """Puts the page at / of an app that has its own routes already."""
    gr.mount_gradio_app(
        app,
        build(studio),
        path="/",
        theme=controls.theme(),
        css=html.CSS,
        footer_links=[],
        ssr_mode=False,
        run_history=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        show_error=False,
    )


def build(studio: Studio) -> gr.Blocks:
    """Returns the page."""
    start = recipes.Page()
    steps = timelapse.steps(studio.path)
    values = controls_of(studio, start)
    with gr.Blocks(
        title=f"{studio.model.name}: biggan app", analytics_enabled=False, fill_width=True
    ) as page:
        gr.HTML(html.head(studio))
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                problem = gr.HTML("")
                with gr.Tabs(selected="images") as tabs:
                    with gr.Tab("Images", id="images") as images_tab:
                        picture = gr.HTML(_drawn(studio, start), elem_id="picture")
                        curve_view = gr.HTML(_scores(studio, start))
                    with gr.Tab("Walk", id="walk") as walk_tab:
                        walk_controls = controls.of_walks(values)
                        go = gr.Button("Make the walk", variant="primary")
                        walked = gr.HTML("", elem_id="walk")
                    has_index = studio.index is not None
                    with gr.Tab("Nearest", id="nearest", visible=has_index) as nearest_tab:
                        near = gr.HTML("", elem_id="nearest")
                    with gr.Tab("Compare", id="compare", visible=bool(studio.checkpoints)) as pair:
                        against = gr.Dropdown(
                            [("choose one", ""), *_checkpoint_names(studio)],
                            value="",
                            label="Checkpoint to compare with",
                        )
                        compared = gr.HTML("", elem_id="compared")
                    with gr.Tab("Training", id="training", visible=bool(steps)) as training_tab:
                        if steps:
                            moment = gr.Slider(
                                1, max(2, len(steps)), len(steps), step=1, label="Sheet number"
                            )
                            sheet = gr.HTML(html.training(steps[-1], steps), elem_id="training")
                            moment.change(
                                lambda i: html.training(steps[_clipped(i, len(steps)) - 1], steps),
                                moment, sheet, api_visibility="private",
                            )  # fmt: skip
                            show = gr.Button("Play the time-lapse")
                            film = gr.HTML("")
                            show.click(
                                lambda: html.film("/api/timelapse", "the training, step by step"),
                                None, film, api_visibility="private",
                            )  # fmt: skip
                    with gr.Tab("For programs", id="api") as api_tab:
                        programs = gr.HTML(html.programs("", ""))
            with gr.Column(scale=2, min_width=300):
                shown, sliders, random = controls.of_images(studio, values)
        link = gr.Textbox("/", label="Link to this state", interactive=False, buttons=["copy"])
        tab = gr.State("images")

        ordered = [{**shown, **walk_controls, "against": against}[name] for name in _CONTROLS]
        settings = [*ordered, *sliders, tab]
        drawn = [problem, picture, curve_view, compared, near, link, programs]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        show_link = functools.partial(
            gr.on, fn=None, inputs=[link], outputs=None, api_visibility="private",
            js="(address) => { history.replaceState(null, '', address); }",
        )  # fmt: skip
        show_link([link.change])

        def draw(request: gr.Request, *given):
            return _redraw(studio, given, request)

        def classes_changed(request: gr.Request, *given):
            values = dict(zip(_CONTROLS, given, strict=False))
            bars = _bars(studio, values["classes"] or [], values["mix"])
            return [*bars, *_redraw(studio, given, request)]

        def truncation_moved(request: gr.Request, *given):
            values = dict(zip(_CONTROLS, given, strict=False))
            if values["mode"] == controls.NONE:
                values["mode"] = studio.model.truncation_mode
            given = (*values.values(), *given[len(_CONTROLS) :])
            return [values["mode"], *_redraw(studio, given, request)]

        def rolled(request: gr.Request, *given):
            values = dict(zip(_CONTROLS, given, strict=False))
            if not values["keep_z"]:
                values["seed"] = secrets.randbelow(2**31)
            if not values["keep_class"]:
                values["classes"] = _random_classes(studio, values["classes"] or [])
            given = (*values.values(), *given[len(_CONTROLS) :])
            bars = _bars(studio, values["classes"], values["mix"])
            return [values["seed"], values["classes"], *bars, *_redraw(studio, given, request)]

        def walk_made(*given):
            try:
                recipe = _state(studio, given).walk()
                return ["", html.walked(studio, recipe, len(studio.walk(recipe)))]
            except _PROBLEMS as e:
                return [html.problem(str(e)), gr.skip()]

        plain = ("seed", "num", "mode", "lock_z", "sort", "chunks", "against")
        quiet = ("keep_z", "keep_class", "points", "frames", "how", "loop", "fps")
        by_name = dict(zip(_CONTROLS, ordered, strict=True))
        gr.on(
            [by_name[name].input for name in (*plain, *quiet)] + [s.input for s in sliders],
            draw, settings, drawn, trigger_mode="always_last", **private,
        )  # fmt: skip
        gr.on(
            [by_name[name].input for name in ("classes", "mix")],
            classes_changed, settings, [*sliders, *drawn], trigger_mode="always_last", **private,
        )  # fmt: skip
        by_name["truncation"].input(
            truncation_moved, settings, [by_name["mode"], *drawn], trigger_mode="always_last",
            **private,
        )  # fmt: skip
        random.click(
            rolled, settings, [by_name["seed"], by_name["classes"], *sliders, *drawn], **private
        )
        go.click(walk_made, settings, [problem, walked], **private)
        for item, name in (
            (images_tab, "images"), (walk_tab, "walk"), (nearest_tab, "nearest"),
            (pair, "compare"), (training_tab, "training"), (api_tab, "api"),
        ):  # fmt: skip
            item.select(
                functools.partial(_tab_chosen, studio, name), settings, [tab, compared, near, link],
                **private,
            )  # fmt: skip

        def restored(request: gr.Request):
            return _restored(studio, request)

        page.load(restored, None, [*settings, tabs, walked, *drawn], **private).then(
            None, api_visibility="private", js="() => { document.body.dataset.ready = 'yes'; }"
        )
    page.queue(max_size=64, default_concurrency_limit=8, api_open=False)
    return page


def controls_of(studio: Studio, state: recipes.Page) -> dict[str, Any]:
    """Returns what the controls show for a state.

    Raises:
      ConfigError: if the state is none for this model.
    """
    hub = studio.model.truncation_mode == "hub"
    mode = state.mode or studio.model.truncation_mode
    return {
        **{name: getattr(state, name) for name in _CONTROLS if name != "mix"},
        "classes": studio.picked(state.classes),
        "num": state.num or studio.default_num(),
        "truncation": state.truncation or 1.0,
        "mode": controls.NONE if state.truncation is None and not hub else mode,
        "mix": state.weights is not None,
        "chunks": _numbers(state.chunks, studio.model.slots),
        "points": state.points or 0,
        "against": state.against or "",
    }


def state_of(studio: Studio, values: Mapping[str, Any]) -> recipes.Page:
    """Returns the state that controls show; those at their defaults are left unsaid.

    Raises:
      ConfigError: if a value cannot be.
    """
    fields = dict(values)
    picked = [int(i) for i in fields.pop("classes") or []]
    if not picked:
        raise ConfigError("choose a class, or press Random.")
    weights = fields.pop("weights")[: len(picked)]
    if fields.pop("mix"):
        if len(picked) > controls.MIXED:
            raise ConfigError(f"mixing: choose at most {controls.MIXED} classes.")
        fields["weights"] = ",".join(f"{w:g}" for w in weights)
    if fields["mode"] == controls.NONE:
        fields["truncation"] = fields["mode"] = None
    elif fields["mode"] == studio.model.truncation_mode:
        fields["mode"] = None
        if studio.model.truncation_mode == "hub" and fields["truncation"] == 1:
            fields["truncation"] = None
    if fields["num"] == studio.default_num():
        fields["num"] = None
    fields["points"] = fields["points"] or None
    fields["against"] = fields["against"] or None
    chunks = sorted(fields["chunks"])
    every = len(chunks) in (0, studio.model.slots)
    fields["chunks"] = None if every else ",".join(map(str, chunks))
    if picked != studio.picked(None):
        fields["classes"] = ",".join(class_text(studio, i) for i in picked)
    return recipes.read(recipes.Page, {k: v for k, v in fields.items() if v is not None})


def class_text(studio: Studio, label: int) -> str:
    """Returns how a recipe says a class: its name where that means it, else its number."""
    name = studio.model.class_names[label]
    try:
        if names.pick(name, studio.model.class_names) == [label]:
            return name
    except ConfigError:
        pass
    return str(label)


def _state(studio, given):
    values = dict(zip(_CONTROLS, given, strict=False))
    values["weights"] = given[len(_CONTROLS) : -1]
    values["tab"] = given[-1]
    return state_of(studio, values)


def _redraw(studio, given, request):
    """Values of `drawn`: problem, picture, scores, comparison, nearest, link, for programs."""
    try:
        state = _state(studio, given)
        return ["", _drawn(studio, state), *_beside(studio, state, request)]
    except _PROBLEMS as e:
        return [html.problem(str(e)), *[gr.skip()] * 6]


def _beside(studio, state, request):
    origin = f"http://{request.headers.get('host', '')}"
    programs = html.programs(origin, recipes.query(state.images()))
    return [_scores(studio, state), *_on_tabs(studio, state), _address(state), programs]


def _on_tabs(studio, state):
    """Values of the comparison and of what is nearest, each made for its own tab alone."""
    return [_compared(studio, state), _nearest(studio, state)]


def _tab_chosen(studio, name, *given):
    """Values of tab, its contents and link; nothing where the page itself chose the tab."""
    if given[-1] == name:
        return [gr.skip()] * 4
    try:
        state = _state(studio, (*given[:-1], name))
        return [name, *_on_tabs(studio, state), _address(state)]
    except _PROBLEMS:
        return [name, *[gr.skip()] * 3]


def _address(state):
    query = recipes.query(state)
    return f"/?{query}" if query else "/"


def _drawn(studio, state):
    recipe = state.images()
    return html.pictures(studio, recipe, studio.images(recipe))


def _compared(studio, state):
    if not state.against or state.tab != "compare":
        return ""
    pairs = [state.images(), state.images().model_copy(update={"checkpoint": state.against})]
    return html.compared(studio, [(recipe, studio.images(recipe)) for recipe in pairs])


def _nearest(studio, state):
    if studio.index is None or state.tab != "nearest":
        return ""
    recipe = state.images()
    return html.nearest(recipe, studio.nearest(recipe), studio.index.extractor.name)


def _scores(studio, state):
    mode = state.mode or studio.model.truncation_mode
    step = studio.model.step
    chosen = curve.at(curve.read(studio.path), step, mode)
    if not chosen:
        return ""
    fields = {"truncation": state.truncation, "mode": state.mode, "format": "png"}
    query = urllib.parse.urlencode({k: v for k, v in fields.items() if v is not None})
    return html.scores(query, curve.text(chosen, state.truncation))


def _restored(studio, request):
    """Values of all settings, the tab, the walk and what is drawn, from the link."""
    problem, walked = "", ""
    given = dict(request.query_params)
    given.pop("__theme", None)  # Gradio's.
    try:
        state = recipes.read(recipes.Page, given)
        values = controls_of(studio, state)
        picture = _drawn(studio, state)
        if state.tab == "walk":
            walked = html.walked(studio, state.walk(), len(studio.walk(state.walk())))
        beside = _beside(studio, state, request)
    except _PROBLEMS as e:
        problem = html.problem(f"The link: {e}")
        state = recipes.Page()
        values, picture = controls_of(studio, state), _drawn(studio, state)
        beside = _beside(studio, state, request)
    weights = [float(w) for w in (state.weights or "").split(",") if w]
    bars = _bars(studio, values["classes"], values["mix"], weights)
    shown = [values[name] for name in _CONTROLS]
    # Choosing the tab that is chosen would draw again, and wipe the problem away.
    chosen = gr.skip() if state.tab == "images" else gr.update(selected=state.tab)
    return [*shown, *bars, state.tab, chosen, walked, problem, picture, *beside]


def _bars(studio, picked: Sequence[int], mixing: bool, weights: Sequence[float] = ()):
    """The sliders of the mix: as many as classes, named by them."""
    found = []
    for i in range(controls.MIXED):
        change: dict[str, Any] = {"visible": bool(mixing and i < len(picked) <= controls.MIXED)}
        if i < len(picked):
            change["label"] = f"Weight of {studio.model.class_names[picked[i]]}"
        if i < len(weights):
            change["value"] = weights[i]
        found.append(gr.update(**change))
    return found


def _random_classes(studio, picked):
    count = max(1, min(len(picked), len(studio.model.class_names)))
    everything = range(len(studio.model.class_names))
    return sorted(secrets.SystemRandom().sample(everything, count))


def _checkpoint_names(studio):
    own = studio.model.step
    return [
        (n if n == "other" else f"step {int(n):,}", n) for n in studio.checkpoints if n != str(own)
    ]


def _numbers(text, slots):
    if text is None:
        return list(range(slots))
    return [int(word) for word in text.split(",") if word.strip().isdecimal() and int(word) < slots]


def _clipped(value, most):
    return max(1, min(most, int(value)))
