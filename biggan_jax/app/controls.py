"""The page's controls: how they look, what they are called, what they may be set to."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from biggan_jax.app import recipes
from biggan_jax.app.studio import Studio
from biggan_jax.sample import latents

MIXED = 6  # Classes that have a slider.
NONE = "none"
FONT = ["system-ui", "sans-serif"]


def theme() -> gr.themes.Base:
    """Returns Gradio's own with fonts that are there, and colours that can be told apart."""
    plain = gr.themes.Default(primary_hue="blue", font=FONT, font_mono=["monospace"])
    return plain.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
    )


def of_images(studio: Studio, values: Mapping[str, Any]) -> tuple[dict[str, Any], list, gr.Button]:
    """Returns the controls of what is drawn, by name, the sliders of the mix, and Random."""
    model = studio.model
    hub = model.truncation_mode == "hub"
    shown: dict[str, Any] = {}
    shown["classes"] = gr.Dropdown(
        [(name, i) for i, name in enumerate(model.class_names)],
        value=values["classes"],
        multiselect=True,
        max_choices=recipes.MAX_CLASSES,
        label="Classes (type to search)",
        elem_id="classes",
    )
    random = gr.Button("Random", variant="primary")
    with gr.Row():
        shown["seed"] = gr.Number(
            values["seed"], label="Seed", precision=0, minimum=0, min_width=90
        )
        shown["keep_z"] = gr.Checkbox(values["keep_z"], label="Lock z", min_width=90)
        shown["keep_class"] = gr.Checkbox(values["keep_class"], label="Lock class", min_width=90)
    top = 1.0 if hub else 2.0
    shown["truncation"] = gr.Slider(
        0.05, top, values["truncation"], step=0.05, label="Truncation", elem_id="truncation"
    )
    shown["mode"] = gr.Dropdown(
        [*latents.MODES] if hub else [NONE, *latents.MODES],
        value=values["mode"],
        label="Truncation mode",
    )
    shown["num"] = gr.Slider(1, studio.most_images, values["num"], step=1, label="Images")
    with gr.Row():
        shown["lock_z"] = gr.Checkbox(
            values["lock_z"], label="One latent a row", info="only the class differs"
        )
        shown["sort"] = gr.Checkbox(
            values["sort"], label="Sort by D", info="the most real first",
            visible=model.has_discriminator,
        )  # fmt: skip
    shown["chunks"] = gr.CheckboxGroup(
        [(f"chunk {i}", i) for i in range(model.slots)],
        value=values["chunks"],
        label="Chunks of z that vary",
        visible=model.slots > 1,
    )
    shown["mix"] = gr.Checkbox(values["mix"], label="Mix the classes", info="one class of several")
    sliders = [
        gr.Slider(0, 1, 1, step=0.05, label=f"class {i}", visible=False) for i in range(MIXED)
    ]
    return shown, sliders, random


def of_walks(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the controls of a walk, by name."""
    found: dict[str, Any] = {}
    with gr.Row():
        found["frames"] = gr.Slider(1, 60, values["frames"], step=1, label="Frames a leg")
        found["points"] = gr.Slider(
            0, 16, values["points"], step=1, label="Points (0: a class each)"
        )
    with gr.Row():
        found["how"] = gr.Radio(["spherical", "linear"], value=values["how"], label="Way")
        found["loop"] = gr.Checkbox(values["loop"], label="Loop")
        found["fps"] = gr.Slider(1, 50, values["fps"], step=1, label="Frames a second")
    return found
