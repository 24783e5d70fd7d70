"""Chats with images, as `/v1/chat/completions` takes them."""

from __future__ import annotations

import base64
import io
import random
from typing import Any

from PIL import Image

NUM_PICTURES, PIXELS = 4, 384  # 144 tokens each
WORDS = "Prompts pass the layers in groups while others decode. " * 24


def picture(seed: int, width: int, height: int) -> str:
    """An image of random pixels, as a data URL."""
    made = io.BytesIO()
    Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height)).save(
        made, "PNG"
    )
    return "data:image/png;base64," + base64.b64encode(made.getvalue()).decode()


def chat(*parts: str) -> dict[str, Any]:
    """A chat of texts and images."""
    content = [
        {"type": "image_url", "image_url": {"url": part}}
        if part.startswith("data:")
        else {"type": "text", "text": part}
        for part in parts
    ]
    message = {"role": "user", "content": content}
    return {"model": "tiny", "messages": [message], "temperature": 0, "max_tokens": 12, "ignore_eos": True}


def pictures_chat(seed: int, num_pictures: int = NUM_PICTURES, pixels: int = PIXELS) -> dict[str, Any]:
    """A chat that no server has seen."""
    shown = (picture(1000 * seed + index, pixels, pixels) for index in range(num_pictures))
    return chat(f"Number {seed}. ", *shown, WORDS) | {"stream": True}
