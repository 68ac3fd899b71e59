"""Which encoder a setting means, by its form."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent_orchestra.adapters.encoders.hub import default_folder, folder_of, is_hub_name
from agent_orchestra.errors import ConfigurationError
from agent_orchestra.runtime.encoding import Encoder

__all__ = ["installed_folder", "open_encoder"]

#: As in ``openai:text-embedding-3-small``. One letter before a colon is a drive of Windows.
_VENDOR: Final = re.compile(r"[a-z][a-z-]+:[^\\]+", flags=re.ASCII)


async def open_encoder(setting: str, *, vendor: Callable[[str], Encoder], into: Path | None = None) -> Encoder:
    """The encoder that a setting names. It has encoded, unless it is a vendor's; nothing here reaches the network.

    ``setting``: a folder (relative to the working folder), a vendor's model as ``vendor:model``, which ``vendor``
    opens, or a name of the hub that was installed before. ``into``: where it was, if not in the default folder.

    Raises :class:`ConfigurationError` with what to change: whoever can do without an encoder goes on without.
    """
    if _VENDOR.fullmatch(setting):
        return vendor(setting)
    folder = installed_folder(setting, into)
    from agent_orchestra.adapters.encoders.folder import open_folder

    return await asyncio.to_thread(open_folder, folder)


def installed_folder(setting: str, into: Path | None = None) -> Path:
    """The folder that a setting means which names no vendor. Raises :class:`ConfigurationError` where there is none."""
    folder = Path(setting).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_name(setting):
        raise ConfigurationError(f"there is no folder '{setting}' with an encoder; check routing.encoder")
    if (folder := folder_of(setting, into)).is_dir():
        return folder
    raise ConfigurationError(
        f"there is no folder '{setting}', and no encoder of that name in '{into or default_folder()}'; "
        f"fetch it: orchestra encoder install {setting}"
    )
