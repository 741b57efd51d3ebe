"""Tiny inputs: from the arguments of a model's forward, in the forms that such arguments have, until one runs."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

LENGTH = 10
VISION = re.compile(r".*(vision|visual|image|backbone|vit|pixel|encoder|detector|vq|perception).*")
AUDIO = re.compile(r".*(audio|speech|acoustic|encoder|codec).*")
VIDEO_ARGUMENTS = re.compile(r".*video.*|second_per_grid_ts")
IMAGE_ARGUMENTS = re.compile(
    r"pixel_values\w*|image\w*|pixel_\w+|spatial_shapes|aspect_ratio\w*|tgt_sizes|patch_\w+|images\w*"
)
AUDIO_ARGUMENTS = re.compile(r"input_features\w*|input_values\w*|audio\w*|feature_\w+|speech\w*")


class Inputs:
    """Makes inputs for one model.

    Args:
        model: with a config.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.config = model, model.config
        self.arguments = inspect.signature(model.forward).parameters
        self.generator = torch.Generator().manual_seed(0)

    def candidates(self) -> Iterator[dict[str, Any]]:
        """Inputs to try, from all modalities together to each alone."""
        required = {
            name
            for name, each in self.arguments.items()
            if each.default is inspect.Parameter.empty and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        }
        makers = {name: forms for name in self.arguments if (forms := self.forms(name, name in required))}
        seen = set()
        for dropped in self._choices(makers):
            chosen = {name: forms for name, forms in makers.items() if name not in dropped or name in required}
            key = tuple(sorted(chosen))
            if key in seen or not chosen:
                continue
            seen.add(key)
            for combination in itertools.islice(itertools.product(*chosen.values()), 12):
                inputs: dict[str, Any] = {}
                for name, form in zip(chosen, combination, strict=True):
                    inputs.update(form if isinstance(form, dict) else {name: form})
                yield {name: value for name, value in inputs.items() if name in self.arguments}

    def _choices(self, makers: dict[str, Any]) -> Iterator[set[str]]:
        images = {name for name in makers if IMAGE_ARGUMENTS.fullmatch(name)}
        audio = {name for name in makers if AUDIO_ARGUMENTS.fullmatch(name)}
        videos = {name for name in makers if VIDEO_ARGUMENTS.fullmatch(name)}
        text = {"input_ids", "mm_token_type_ids"} & set(makers)
        yield videos if images - videos or audio - videos or text else set()
        yield from (videos | audio, videos | images, videos | images | audio, text | videos, text | audio | images)

    # What each argument may look like -----------------------------------------------------------------------------

    def forms(self, name: str, required: bool) -> list[Any]:
        """The forms that an argument may have, the likeliest first; none where it may be left out."""
        maker = getattr(self, f"_{name}", None)
        if maker is not None:
            return maker()
        if required and re.fullmatch(r"(decoder_|text_|query_)?input_ids", name):
            return [self.ids(LENGTH)]
        if required and name in ("hidden_states", "inputs_embeds", "encoder_hidden_states", "embeddings"):
            return [self.noise(1, LENGTH, self.get("hidden_size", "d_model", default=64))]
        return []

    def _input_ids(self) -> list[Any]:
        codebooks = self.get("num_codebooks", "n_codebooks", default=0)
        length = LENGTH
        plain = self.ids(length)
        packed = (
            [
                plain[..., None].repeat(1, 1, codebooks),
                plain[..., None].repeat(1, 1, codebooks + 1),
                plain[:, None].repeat(1, codebooks, 1),
            ]
            if codebooks
            else []
        )
        return [plain, *packed]

    def _decoder_input_ids(self) -> list[Any]:
        codebooks = get(getattr(self.config, "decoder_config", self.config), "num_codebooks", "num_channels", default=0)
        plain = self.ids(7)
        return [plain, plain[..., None].repeat(1, 1, codebooks), plain.repeat(codebooks, 1)] if codebooks else [plain]

    def _qformer_input_ids(self) -> list[Any]:
        return [self.ids(6)]

    def _query_embeds(self) -> list[Any]:
        inner = self.get("encoder_hidden_size", default=64)
        queries = self.noise(1, 5, self.get("hidden_size", default=64))
        return (
            []
            if "input_ids" in self.arguments
            else [{"query_embeds": queries, "encoder_hidden_states": self.noise(1, LENGTH, inner)}]
        )

    def _states(self) -> list[Any]:
        if "actions" not in self.arguments:
            return []
        return [
            {
                "states": self.noise(1, 5, self.config.state_dim),
                "actions": self.noise(1, 5, self.config.act_dim),
                "rewards": self.noise(1, 5, 1),
                "returns_to_go": self.noise(1, 5, 1),
                "timesteps": torch.arange(5)[None],
            }
        ]

    def _hidden_states(self) -> list[Any]:
        if "padding_cache" in self.arguments:
            return [self.noise(1, self.get("hidden_size", default=64), LENGTH), self.noise(1, 1, 4000)]
        if "grid_thw" not in self.arguments:
            return []
        grids = [form for form in self._pixel_values() if "grid_thw" in form]
        return [{"hidden_states": form["pixel_values"], "grid_thw": form["grid_thw"]} for form in grids]

    def _image_embeds_position_mask(self) -> list[Any]:
        mask = torch.zeros(1, LENGTH, dtype=torch.long)
        mask[:, 2 : 2 + self.get("latent_query_num", default=5)] = 1
        return [mask]

    def _text_input_ids(self) -> list[Any]:
        return [self.ids(LENGTH)]

    def _bbox(self) -> list[Any]:
        boxes = torch.tensor([[k, 2 * k, k + 9, 2 * k + 7] for k in range(1, LENGTH + 1)])[None]
        return [boxes, boxes.float() / 40]

    def _pixel_values(self) -> list[Any]:
        config = self.part(VISION)
        height, width = _pair(get(config, "image_size", "img_size", "input_size", "crop_size", default=64))
        channels = get(config, "num_channels", "in_channels", "in_chans", "num_image_channels", default=3)
        channels = channels if isinstance(channels, int) else 3
        patch = _pair(get(config, "patch_size", "spatial_patch_size", default=4))[0]
        frames = get(config, "num_frames", "frames_per_clip", default=2)
        temporal = get(config, "temporal_patch_size", "patch_temporal", default=1) or 1
        temporal = temporal if isinstance(temporal, int) else 1
        plain = self.noise(1, channels, height, width)
        tiles = self.noise(1, 2, channels, height, width)
        clip = self.noise(1, frames, channels, height, width)
        side = 4
        grid = {
            "pixel_values": self.noise(side * side, channels * temporal * patch * patch),
            "image_grid_thw": torch.tensor([[1, side, side]]),
            "grid_thw": torch.tensor([[1, side, side]]),
            "image_grid_hws": torch.tensor([[side, side]]),
            "image_merge_sizes": torch.tensor([2]),
            "merge_sizes": torch.tensor([2]),
            "target_sizes": torch.tensor([[side, side]]),
        }
        flat = {
            "pixel_values": self.noise(1, side * side, channels * patch * patch),
            "pixel_attention_mask": torch.ones(1, side * side, dtype=torch.long),
            "spatial_shapes": torch.tensor([[side, side]]),
            "pixel_position_ids": _grid_positions(side)[None],
            "image_position_ids": _grid_positions(side)[None],
        }
        sized = {
            "pixel_values": plain,
            "image_sizes": torch.tensor([[height, width]]),
            "pixel_mask": torch.ones(1, height, width, dtype=torch.long),
            "pixel_attention_mask": torch.ones(1, height, width, dtype=torch.long),
            "high_res_pixel_values": self.noise(1, channels, height, width),
        }
        tiled = {"pixel_values": tiles, "image_attention_mask": torch.ones(1, LENGTH, 2, dtype=torch.long)}
        tiled["pixel_attention_mask"] = torch.ones(1, 2, height, width, dtype=torch.long)
        pinpoints = {"pixel_values": self.noise(1, 3, channels, height, width)}
        pinpoints["image_sizes"] = torch.tensor([[height, 2 * width]])
        aspects = {
            "pixel_values": self.noise(1, 1, 4, channels, height, width),
            "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(1, 1, 4, dtype=torch.long),
            "cross_attention_mask": torch.ones(1, LENGTH, 1, 4, dtype=torch.long),
        }
        strip = {"pixel_values": self.noise(1, channels, patch, side * side * patch)}
        strip["target_sizes"] = torch.tensor([[side, side]])
        patches = {**grid, "pixel_values": self.noise(side * side, channels, patch, patch)}
        many = {**patches, "pixel_values": patches["pixel_values"][None]}
        forms: list[Any] = [sized, {"pixel_values": plain}, tiled, {"pixel_values": clip}, flat, grid]
        if {"image_grid_thw", "grid_thw", "image_grid_hws"} & set(self.arguments):
            forms = [grid, flat, patches, many, *forms[:3]]
        elif {"spatial_shapes", "pixel_position_ids", "image_position_ids"} & set(self.arguments):
            forms = [flat, grid, *forms[:3]]
        elif hasattr(config, "num_frames") or hasattr(config, "frames_per_clip"):
            forms = [{"pixel_values": clip}, sized, tiled]
        if "target_sizes" in self.arguments:
            forms = [strip, grid, flat]
        if "aspect_ratio_ids" in self.arguments:
            forms = [aspects]
        if hasattr(self.config, "image_grid_pinpoints"):
            forms = [pinpoints, *forms]
        return forms

    def _pixel_values_videos(self) -> list[Any]:
        forms = []
        for form in self._pixel_values():
            videos = {"pixel_values_videos": form["pixel_values"]}
            if "image_grid_thw" in form:
                videos["video_grid_thw"] = form["image_grid_thw"]
            forms.append(videos)
        return forms

    def _pixel_values_images(self) -> list[Any]:
        return [{"pixel_values_images": form["pixel_values"]} for form in self._pixel_values()]

    def _visual_feats(self) -> list[Any]:
        wide = self.get("visual_feat_dim", default=64)
        return [{"visual_feats": self.noise(1, 4, wide), "visual_pos": self.noise(1, 4, 4).sigmoid()}]

    def _inputs(self) -> list[Any]:
        return [self.noise(1, LENGTH, self.get("d_model", default=64))]

    def _task_inputs(self) -> list[Any]:
        return [self.ids(self.get("task_seq_len", default=LENGTH))]

    def _action_embeds(self) -> list[Any]:
        return [self.noise(1, 4, self.get("hidden_size", default=64))]

    def _past_values_padding(self) -> list[Any]:
        return [torch.zeros(1, self._past_values()[0].shape[1])]

    def _freq(self) -> list[Any]:
        return [torch.zeros(1, 1, dtype=torch.long)]

    def _input_features(self) -> list[Any]:
        config = self.part(AUDIO)
        bins = get(
            config,
            "num_mel_bins",
            "n_mels",
            "input_feat_per_channel",
            "feature_size",
            "input_feat_size",
            "feature_projection_input_dim",
            "input_dim",
            default=16,
        )
        positions = get(config, "max_source_positions", default=0)
        frames = 2 * positions if positions and positions <= 128 else 64
        rows = self.noise(1, frames, bins)
        mask = torch.ones(1, frames, dtype=torch.long)
        masks = {
            "attention_mask": torch.ones(1, LENGTH, dtype=torch.long),
            "feature_attention_mask": mask,
            "input_features_mask": mask.bool(),
            "audio_feature_lengths": mask.sum(1),
        }
        if "feature_attention_mask" not in self.arguments:
            del masks["attention_mask"]
        if "input_features_mask" in self.arguments:
            return [{"input_features": each, **more} for more in (masks, {}) for each in (rows.mT.contiguous(), rows)]
        return [{"input_features": each, **masks} for each in (rows.mT.contiguous(), rows, rows[:, None])]

    def _input_values(self) -> list[Any]:
        wave = self.noise(1, 4000)
        config = self.part(AUDIO)
        bins = get(config, "num_mel_bins", default=16)
        length = get(config, "max_length", default=64)
        masked = {"input_values": wave[:, None], "padding_mask": torch.ones(1, 4000, dtype=torch.long)}
        return [wave, masked, self.noise(1, length, bins)]

    def _mm_token_type_ids(self) -> list[Any]:
        return [torch.zeros(1, LENGTH, dtype=torch.long)]

    def _past_values(self) -> list[Any]:
        context = self.get("context_length", default=16) or 16
        lags = self.get("lags_sequence", default=None)
        long = context + max(lags) if lags else context
        channels = self.get("num_input_channels", "input_size", default=1)
        wide = self.noise(1, long, channels)
        flat = self.noise(1, long)
        return [flat, wide] if lags else [wide, flat]

    def _past_time_features(self) -> list[Any]:
        long = self._past_values()[0].shape[1]
        return [self.noise(1, long, self.get("num_time_features", default=0))]

    def _past_observed_mask(self) -> list[Any]:
        return [torch.ones_like(each) for each in self._past_values()]

    # Helpers ----------------------------------------------------------------------------------------------------------

    def ids(self, length: int) -> Tensor:
        """Token ids that differ from each other and are no special tokens."""
        vocabulary = min(get(self.config, "vocab_size", default=0) or _vocabulary(self.config), 80)
        vocabulary = max(vocabulary, 6)
        return torch.randint(5, vocabulary, (1, length), generator=self.generator)

    def noise(self, *shape: int) -> Tensor:
        """Normal noise."""
        return torch.randn(shape, generator=self.generator)

    def get(self, *names: str, default: Any) -> Any:
        """A value of the config or of one inside it."""
        return get(self.config, *names, default=default)

    def part(self, kind: re.Pattern[str]) -> PreTrainedConfig:
        """The config of this modality."""
        for name, value in _configs(self.config):
            if kind.fullmatch(name) and isinstance(value, PreTrainedConfig):
                return value
        return self.config


def with_placeholders(model: nn.Module, inputs: dict[str, Any], error: str) -> Iterator[dict[str, Any]]:
    """Inputs with as many placeholders of images or sounds among the tokens as an error message says are missing."""
    if "input_ids" not in inputs or not re.search(r"token|placeholder|feature|match|shape", error):
        return
    numbers = [int(each) for each in re.findall(r"\d+", error.rpartition("@")[0])]
    numbers += [each // 64 for each in numbers if each % 64 == 0]  # values of vectors as wide as the tiny models
    counts = sorted({each for each in numbers if 0 < each <= 100}, reverse=True)
    kinds = ("image", "audio", "video", "image_patch", "speech")
    for kind in kinds:
        token = next(
            (
                value
                for suffix in ("_token_id", "_token_index", "_patch_id")
                for _, config in [("", model.config), *_configs(model.config)]
                if isinstance(value := getattr(config, kind + suffix, None), int)
            ),
            None,
        )
        if token is None:
            continue
        for count in counts:
            ids = inputs["input_ids"]
            ids = ids[ids != token][None]
            ids = torch.cat([ids[:, :3], torch.full((1, count), token), ids[:, 3:]], 1)
            new = {**inputs, "input_ids": ids}
            if "attention_mask" in inputs and "input_ids" in inputs:
                new["attention_mask"] = torch.ones_like(ids)
            if "image_attention_mask" in inputs:
                new["image_attention_mask"] = torch.ones(*ids.shape, 2, dtype=torch.long)
            if "mm_token_type_ids" in inputs:
                new["mm_token_type_ids"] = torch.zeros_like(ids).masked_fill(ids == token, 1 if kind == "image" else 2)
            yield new


def get(config: Any, *names: str, default: Any) -> Any:
    """The first of these attributes that a config has, or else a config inside it."""
    for name in names:
        if (value := getattr(config, name, None)) is not None:
            return value
    for _, inner in _configs(config):
        for name in names:
            if (value := getattr(inner, name, None)) is not None:
                return value
    return default


def _vocabulary(config: Any) -> int:
    return get(config, "vocab_size", "text_vocab_size", "n_vocab", default=80)


def _configs(config: Any) -> list[tuple[str, PreTrainedConfig]]:
    found = []
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            found += [(name, value), *_configs(value)]
    return found


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        size = list(size.values())
    return (size, size) if isinstance(size, int) else (int(size[-2]), int(size[-1]))


def _grid_positions(side: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(side), torch.arange(side))
