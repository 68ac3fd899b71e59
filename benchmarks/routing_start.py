"""A fresh process that decides one request: it says so, and ends when its standard input does.

``python -m benchmarks.routing_start FOLDER ENCODER``: the first is prepared by :mod:`benchmarks.routing_growth`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

__all__: list[str] = []


async def _decide(folder: Path, encoder_folder: Path) -> str:
    import numpy as np

    from agent_orchestra.core.agent import Agent
    from agent_orchestra.core.classifier import restore

    agents = [Agent(**kept) for kept in json.loads((folder / "agents.json").read_text(encoding="utf-8"))]
    with np.load(folder / "vectors.npz") as kept:
        vectors = dict(zip(kept["texts"].tolist(), kept["vectors"], strict=True))
    model = restore((folder / "learned").read_bytes(), agents, vectors)
    text, vector = "what is my balance", None
    if vectors:
        from agent_orchestra.adapters.encoders.folder import open_folder

        vector = (await open_folder(encoder_folder).encode([text]))[0]
    return model.judge(text, vector).ranked[0].agent_id


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    print(asyncio.run(_decide(Path(sys.argv[1]), Path(sys.argv[2]))), flush=True)
    sys.stdin.read()
