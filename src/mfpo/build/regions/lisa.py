"""Regions from LISA: a LLaVA whose state where it would say [SEG] prompts SAM's mask decoder.

Lai et al., "LISA: Reasoning Segmentation via Large Language Model", CVPR 2024; layout of dvlab-research/LISA, v1.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    LlamaTokenizer,
    SamConfig,
    SamImageProcessorPil,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from mfpo.build.regions import Search, segmenter
from mfpo.build.regions.vision import Found, batches, load_image_processor, model_state, resize_masks, search_images
from mfpo.build.settings import RegionSettings
from mfpo.errors import MfpoError, RecordError, first_line, one_line
from mfpo.hub import find_model
from mfpo.models import default_dtype, device, load_weights, quiet
from mfpo.records import Region

# The prompt of LISA's own validation; its published figures are from one forward pass over it, not from generation.
_BEFORE_IMAGE = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. USER:"
)
_AFTER_IMAGE = "What is {keyword} in this image? Please output segmentation mask. ASSISTANT:"
_MARKERS = ("[SEG]", "<im_start>", "<im_end>")

_PATCH = 16  # SAM's

_CONVERT = (
    'python -c "import glob, torch, safetensors.torch as s; '
    "[s.save_file(torch.load(f, weights_only=True), f[:-3] + 'safetensors') for f in glob.glob('pytorch_model*.bin')]\""
)

# LISA's name of a weight -> its part here and transformers' name in it. Every rule is tried, in this order.
_NAMES = (
    # Words are never written, positions are computed, and LISA itself reads the frozen tower from CLIP's checkpoint.
    (r"^(lm_head|model\.vision_tower)\..*|.*\.rotary_emb\.inv_freq$", ""),
    (r"^model\.(embed_tokens|layers|norm)\.", r"language.\1."),
    (r"^model\.mm_projector\.", "projector."),
    (r"^model\.text_hidden_fcs\.0\.", "text_head."),
    (r"^model\.visual_model\.image_encoder\.", "sam.vision_encoder."),
    (r"^model\.visual_model\.", "sam."),
    (r"^(sam\.vision_encoder)\.patch_embed\.proj\.", r"\1.patch_embed.projection."),
    (r"^(sam\.vision_encoder)\.blocks\.(\d+)\.norm", r"\1.layers.\2.layer_norm"),
    (r"^(sam\.vision_encoder)\.blocks\.", r"\1.layers."),
    (r"^(sam\.vision_encoder)\.neck\.0\.", r"\1.neck.conv1."),
    (r"^(sam\.vision_encoder)\.neck\.1\.", r"\1.neck.layer_norm1."),
    (r"^(sam\.vision_encoder)\.neck\.2\.", r"\1.neck.conv2."),
    (r"^(sam\.vision_encoder)\.neck\.3\.", r"\1.neck.layer_norm2."),
    (r"^sam\.prompt_encoder\.pe_layer\..*", "sam.shared_image_embedding.positional_embedding"),
    (r"^(sam\.prompt_encoder)\.point_embeddings\.", r"\1.point_embed."),
    (r"^(sam\.prompt_encoder)\.mask_downscaling\.0\.", r"\1.mask_embed.conv1."),
    (r"^(sam\.prompt_encoder)\.mask_downscaling\.1\.", r"\1.mask_embed.layer_norm1."),
    (r"^(sam\.prompt_encoder)\.mask_downscaling\.3\.", r"\1.mask_embed.conv2."),
    (r"^(sam\.prompt_encoder)\.mask_downscaling\.4\.", r"\1.mask_embed.layer_norm2."),
    (r"^(sam\.prompt_encoder)\.mask_downscaling\.6\.", r"\1.mask_embed.conv3."),
    (r"^(sam\.mask_decoder\.transformer\.layers\.\d+)\.norm", r"\1.layer_norm"),
    (r"^(sam\.mask_decoder\.transformer)\.norm_final_attn\.", r"\1.layer_norm_final_attn."),
    (r"^(sam\.mask_decoder)\.output_upscaling\.0\.", r"\1.upscale_conv1."),
    (r"^(sam\.mask_decoder)\.output_upscaling\.1\.", r"\1.upscale_layer_norm."),
    (r"^(sam\.mask_decoder)\.output_upscaling\.3\.", r"\1.upscale_conv2."),
    (r"(output_hypernetworks_mlps\.\d|iou_prediction_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(output_hypernetworks_mlps\.\d|iou_prediction_head)\.layers\.1\.", r"\1.layers.0."),
    (r"(output_hypernetworks_mlps\.\d|iou_prediction_head)\.layers\.2\.", r"\1.proj_out."),
)


@segmenter("lisa")
class LisaRegions:
    """The LISA in the folder, or of the hub's name, `where`.

    Raises MfpoError when its files are missing, broken, no safetensors, or not in LISA's layout.
    """

    def __init__(self, where: str, settings: RegionSettings = RegionSettings()) -> None:
        folder = find_model(where)
        self._lisa, self._clip_processor = load_lisa(folder)
        self._tokenizer = _load_tokenizer(folder, self._lisa.language.config.vocab_size)
        self._side = self._lisa.sam.config.vision_config.image_size
        self._sam_processor = SamImageProcessorPil(
            size={"longest_edge": self._side}, pad_size={"height": self._side, "width": self._side}
        )
        self._settings = settings
        self.provenance = {"lisa": model_state(folder)}

    def __call__(self, searches: Sequence[Search]) -> list[list[Region] | RecordError]:
        """The regions of the keywords, one image at a time and all its keywords at once.

        The score is the mean probability in the mask: LISA's training left out SAM's own estimate of a mask's quality.
        """
        return search_images(searches, self._settings, lambda batch: [self._find(search) for search in batch])

    def _find(self, search: Search) -> list[Found]:
        image = Image.fromarray(search.pixels)
        pixels = self._clip_processor(image, return_tensors="pt")["pixel_values"]
        before, after = self._encode([keyword["text"] for keyword in search.keywords])
        batch = self._settings.region_batch
        prompts = torch.cat([self._lisa.read_prompts(pixels, before, some) for some in batches(after, batch)])
        encoded = self._sam_processor(image, return_tensors="pt")
        height, width = encoded["reshaped_input_sizes"][0]  # the rest of the square is padding
        scored_masks = []
        for logits in self._lisa.draw_masks(encoded["pixel_values"], prompts):
            square = interpolate(logits[None, None].float(), (self._side, self._side), mode="bilinear")[0]
            probability = resize_masks(square[:, :height, :width], search)[0].sigmoid()
            mask = probability > self._settings.mask_threshold
            scored_masks.append((mask, float(probability[mask].mean()) if mask.any() else 0.0))
        return scored_masks

    def _encode(self, keywords: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """The tokens before the image, and for each keyword those after it.

        Around its markers LISA's tokenizer drops spaces, so the texts between them are encoded by themselves.
        """
        _, start, end = self._tokenizer.convert_tokens_to_ids(_MARKERS)
        before = self._tokenizer.encode(_BEFORE_IMAGE, add_special_tokens=False)
        questions = [_AFTER_IMAGE.format(keyword=keyword.lower()) for keyword in keywords]
        return (
            [self._tokenizer.bos_token_id, *before, start],
            [[end, *self._tokenizer.encode(question, add_special_tokens=False)] for question in questions],
        )


class Lisa(nn.Module):
    """LISA's parts by transformers' classes, but for its one-layer projector and the `text_head` from Llama to SAM."""

    def __init__(self, parts: dict[str, Any], select_layer: int) -> None:
        super().__init__()
        self.tower = parts["tower"]
        self.projector = parts["projector"]
        self.language = parts["language"]
        self.text_head = parts["text_head"]
        self.sam = parts["sam"]
        self._select_layer = select_layer

    def read_prompts(self, pixels: Tensor, before: Sequence[int], after: Sequence[Sequence[int]]) -> Tensor:
        """SAM's prompt for each question about one image, (questions, 256).

        `pixels` (1, 3, side, side) are CLIP's, `before` the tokens before the image and `after` those of each question.
        """
        layers = self.tower(pixels.to(device(), default_dtype()), output_hidden_states=True).hidden_states
        patches = self.projector(layers[self._select_layer][:, 1:])
        # Padded on the right, which no earlier position sees.
        questions = pad_sequence([torch.tensor(tokens) for tokens in after], batch_first=True).to(device())
        embed = self.language.get_input_embeddings()
        shared = torch.cat([embed(torch.tensor([before], device=device())), patches], dim=1)
        inputs = torch.cat([shared.expand(len(after), -1, -1), embed(questions)], dim=1)
        states = self.language(inputs_embeds=inputs, use_cache=False).last_hidden_state
        # LISA reads the state that predicts [SEG]: its mask of [SEG] tokens is shifted by one, and by the image's 255
        # further positions. In the prompt's answer, "[SEG].", that is the prompt's last token, so none has to follow.
        last = [shared.shape[1] + len(tokens) - 1 for tokens in after]
        return self.text_head(states[range(len(after)), last])

    def draw_masks(self, pixels: Tensor, prompts: Tensor) -> Tensor:
        """The logits of one mask a prompt, (prompts, side / 4, side / 4); `pixels` (1, 3, side, side) are SAM's."""
        _, dense = self.sam.prompt_encoder(input_points=None, input_labels=None, input_boxes=None, input_masks=None)
        masks, _ = self.sam.mask_decoder(
            image_embeddings=self.sam.get_image_embeddings(pixels.to(device(), default_dtype())),
            image_positional_embeddings=self.sam.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=prompts[None, :, None],
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return masks[0, :, 0]


@quiet()
def load_lisa(folder: Path) -> tuple[Lisa, CLIPImageProcessorPil]:
    """The LISA in `folder` on the GPU if there is one, in `default_dtype`, and the processor of its CLIP tower.

    Raises MfpoError when files are missing or broken, and when weights are missing, unknown, or of another shape.
    """
    config = _read_config(folder)
    weights = _read_weights(folder)
    tower, processor = _load_tower(folder, config)
    try:
        width = config["hidden_size"]
        sam = _load_part(SamModel, _sam_config(weights["sam"]), weights.pop("sam"), folder)
        parts = {
            "tower": tower,
            "projector": nn.Linear(config["mm_hidden_size"], width, dtype=default_dtype()),
            "language": _load_part(LlamaModel, LlamaConfig(**config), weights.pop("language"), folder),
            "text_head": nn.Sequential(
                nn.Linear(width, width, dtype=default_dtype()),
                nn.ReLU(),
                nn.Linear(width, sam.config.prompt_encoder_config.hidden_size, dtype=default_dtype()),
            ),
            "sam": sam,
        }
        parts["projector"].load_state_dict(weights.pop("projector"))
        parts["text_head"].load_state_dict(weights.pop("text_head"))
    except KeyError as error:
        raise MfpoError(f"{folder}: not in LISA's layout, weights of {error} are missing") from None
    except (RuntimeError, TypeError, ValueError, StrictDataclassError) as error:
        raise MfpoError(f"{folder}: its config.json or its weights do not fit LISA ({one_line(error)})") from None
    return Lisa(parts, config["mm_vision_select_layer"]).to(device()).eval(), processor


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        raise MfpoError(f"{folder}: no LISA there (no valid config.json); give its folder, or a hub name") from None
    needed = {"vision_tower": str, "hidden_size": int, "mm_hidden_size": int, "mm_vision_select_layer": int}
    if not isinstance(config, dict) or not all(isinstance(config.get(key), kind) for key, kind in needed.items()):
        raise MfpoError(
            f"{folder}: no LISA there; its config.json must give {', '.join(needed)}, the last three as numbers"
        )
    return config


def _read_weights(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The weights by part, under the names of transformers."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise MfpoError(
            f"{folder}: no *.safetensors there; nothing else is loaded, as LISA's *.bin files are pickles: "
            f"convert them, in that folder, with {_CONVERT}"
        )
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for file in files:
        try:
            weights = load_file(file)
        except (OSError, SafetensorError) as error:
            raise MfpoError(f"{file}: cannot be read ({first_line(error)}); copy or convert it again") from None
        for name, weight in weights.items():
            part, _, own_name = rename(name).partition(".")
            if part:
                parts[part][own_name] = weight.to(default_dtype())
    unknown = parts.keys() - {"language", "projector", "text_head", "sam"}
    if unknown:
        raise MfpoError(
            f"{folder}: not in LISA's layout, which has no weight {min(unknown)}.{min(parts[min(unknown)])}"
        )
    return parts


def rename(name: str) -> str:
    """LISA's `name` of a weight as "part.name", the name being transformers'; "" for one that is not needed.

    >>> rename("model.visual_model.mask_decoder.output_hypernetworks_mlps.3.layers.1.bias")
    'sam.mask_decoder.output_hypernetworks_mlps.3.layers.0.bias'
    """
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _sam_config(weights: dict[str, Tensor]) -> SamConfig:
    """SAM's sizes, which LISA's config.json leaves out (ViT-H in the published ones), from its weights."""
    _, grid, _, width = weights["vision_encoder.pos_embed"].shape
    _, head = weights["vision_encoder.layers.0.attn.rel_pos_h"].shape
    layers = range(sum(name.endswith("attn.rel_pos_h") for name in weights))
    distances = [len(weights[f"vision_encoder.layers.{layer}.attn.rel_pos_h"]) for layer in layers]
    vision = SamVisionConfig(
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=width // head,
        image_size=_PATCH * grid,
        # The others see windows of 14 patches, with fewer distances than in the whole image.
        global_attn_indexes=[layer for layer in layers if distances[layer] == 2 * grid - 1],
    )
    return SamConfig(
        vision_config=vision,
        prompt_encoder_config=SamPromptEncoderConfig(image_size=_PATCH * grid),
        mask_decoder_config=SamMaskDecoderConfig(layer_norm_eps=1e-5),  # SAM's; transformers' own default is 1e-6
    )


def _load_tower(folder: Path, config: dict[str, Any]) -> tuple[Any, CLIPImageProcessorPil]:
    """The CLIP that LISA's config.json names, and its processor. LISA's own files leave it out, as it was frozen."""
    tower_folder = find_model(config["vision_tower"])
    try:
        # A whole CLIP has a text model too, which is left.
        tower = load_weights(CLIPVisionModel, tower_folder, dtype=default_dtype())
    except MfpoError as error:
        raise MfpoError(
            f"{tower_folder}: not the CLIP that LISA needs ({error}); "
            f"give its folder or hub name as vision_tower in {folder / 'config.json'}"
        ) from None
    layers = tower.config.num_hidden_layers
    if tower.config.hidden_size != config["mm_hidden_size"] or abs(config["mm_vision_select_layer"]) > layers:
        raise MfpoError(f"{tower_folder}: not the CLIP of {folder}: its hidden size or its layers do not fit")
    return tower, load_image_processor(CLIPImageProcessorPil, tower_folder)


def _load_part(model: Any, config: Any, weights: dict[str, Tensor], folder: Path) -> Any:
    """A transformers `model` with exactly the `weights`, which transformers itself would fill up or leave out."""
    part, loaded = model.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=default_dtype(),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    states = {"missing": "missing_keys", "not LISA's": "unexpected_keys", "of another shape": "mismatched_keys"}
    _check_names(folder, {state: loaded[key] for state, key in states.items()})
    return part


def _check_names(where: Path, states: dict[str, Collection[str]]) -> None:
    for state, names in states.items():
        if names:
            raise MfpoError(f"{where}: {len(names)} weights are {state}, such as {min(map(str, names))}")


@quiet()
def _load_tokenizer(folder: Path, vocabulary: int) -> Any:
    try:
        tokenizer = LlamaTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MfpoError(
            f"{folder}: its tokenizer cannot be loaded ({first_line(error)}); "
            "give tokenizer.json, or tokenizer.model and the package sentencepiece"
        ) from None
    missing = set(_MARKERS) - tokenizer.get_added_vocab().keys()
    if missing or len(tokenizer) > vocabulary:
        lack = f"lacks {', '.join(sorted(missing))}" if missing else f"has {len(tokenizer)} tokens, LISA {vocabulary}"
        raise MfpoError(f"{folder}: its tokenizer {lack}; copy LISA's own next to the weights")
    return tokenizer
