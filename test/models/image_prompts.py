"""Prompts with images for the tiny models, as Hugging Face takes them and as SGLang's scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sglang.srt.layers.rotary_embedding import MRotaryEmbedding
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalProcessorOutput
from transformers import AutoConfig, AutoImageProcessor

PATCHES_A_TOKEN = 4


@dataclass(frozen=True)
class Picture:
    """An image of random pixels; `seed` decides them."""

    seed: int
    width: int
    height: int


@dataclass(frozen=True)
class Asked:
    """A prompt: lists of token ids and pictures, in order."""

    parts: tuple[list[int] | Picture, ...]

    @property
    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if isinstance(part, Picture)]


class Pictures:
    """Makes requests of prompts for the model in a folder."""

    def __init__(self, model: Path) -> None:
        self.config = AutoConfig.from_pretrained(model)
        self._processor = AutoImageProcessor.from_pretrained(model)
        self.patches = cache(self._patches)

    def _patches(self, picture: Picture) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels [patches, values] and the grid [1, 3]."""
        generator = torch.Generator().manual_seed(picture.seed)
        size = (picture.height, picture.width, 3)
        pixels = torch.randint(256, size, generator=generator, dtype=torch.uint8)
        made = self._processor(images=[Image.fromarray(pixels.numpy())], return_tensors="pt")
        return made["pixel_values"], made["image_grid_thw"]

    def tokens(self, asked: Asked) -> tuple[list[int], list[tuple[int, int]]]:
        """All token ids, an image's as its placeholders, and where each image's first and last are."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for part in asked.parts:
            if not isinstance(part, Picture):
                ids += part
                continue
            length = self.patches(part)[0].shape[0] // PATCHES_A_TOKEN
            ids.append(self.config.vision_start_token_id)
            spans.append((len(ids), len(ids) + length - 1))
            ids += [self.config.image_token_id] * length + [self.config.vision_end_token_id]
        return ids, spans

    def request(self, asked: Asked) -> tuple[list[int], dict[str, Any]]:
        """Token ids and what SGLang's tokenizer process would send beside them."""
        ids, spans = self.tokens(asked)
        if not spans:
            return ids, {}
        made = [self.patches(picture) for picture in asked.pictures]
        items = [
            MultimodalDataItem(
                modality=Modality.IMAGE,
                feature=pixels.clone(),
                offsets=[span],
                model_specific_data={"image_grid_thw": grid},
            )
            for (pixels, grid), span in zip(made, spans, strict=True)
        ]
        positions, delta = MRotaryEmbedding.get_rope_index(
            spatial_merge_size=self.config.vision_config.spatial_merge_size,
            image_token_id=self.config.image_token_id,
            video_token_id=self.config.video_token_id,
            vision_start_token_id=self.config.vision_start_token_id,
            model_type=self.config.model_type,
            input_ids=torch.tensor([ids]),
            image_grid_thw=torch.cat([grid for _, grid in made]),
        )
        output = MultimodalProcessorOutput(
            mm_items=items,
            input_ids=ids,
            im_token_id=self.config.image_token_id,
            mrope_positions=positions.squeeze(1),
            mrope_position_delta=delta,
        )
        return ids, {"mm_inputs": output}

    def hugging_face(self, model: Path, prompts: Sequence[Asked], num_outputs: int) -> list[list[int]]:
        """What Hugging Face's model says to each."""
        from transformers import AutoModelForImageTextToText

        oracle = AutoModelForImageTextToText.from_pretrained(
            model, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        outputs = []
        for asked in prompts:
            ids = torch.tensor([self.tokens(asked)[0]])
            made = [self.patches(picture) for picture in asked.pictures]
            seen = {}
            if made:
                seen["pixel_values"] = torch.cat([pixels for pixels, _ in made])
                seen["image_grid_thw"] = torch.cat([grid for _, grid in made])
                seen["mm_token_type_ids"] = (ids == self.config.image_token_id).int()
            generated = oracle.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                max_new_tokens=num_outputs,
                **seen,
            )
            outputs.append(generated[0, ids.shape[1] :].tolist())
        return outputs
