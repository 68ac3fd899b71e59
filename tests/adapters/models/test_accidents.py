"""No test asks a vendor by accident: not without saying so, and then on loopback alone."""

from __future__ import annotations

import traceback
from typing import Final

import pytest

from agent_orchestra.adapters.models.kind import VendorModels
from agent_orchestra.adapters.models.providers import Providers
from agent_orchestra.adapters.models.vendors import ProviderConfig
from agent_orchestra.core.prompt import Prompt, Wrote
from agent_orchestra.errors import ModelFailed
from tests.adapters.models.recorded import APIS, KEY, name_of, open_models
from tests.services.network import NetworkForbiddenError
from tests.services.replay import ReplayServer
from tests.services.replay import read_case as recorded

#: The first test of a process imports the SDKs of the vendors, which takes seconds.
pytestmark = pytest.mark.timeout(120)

HI: Final = Prompt(turns=[Wrote(content="hi")])


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("api", APIS)
async def test_no_model_is_asked_unless_a_test_says_so(api: str, streamed: bool) -> None:
    async with ReplayServer() as server, open_models(server.url) as models:
        with pytest.raises((RuntimeError, ModelFailed)) as caught:
            await models.ask(name_of(recorded(f"{api}/text")), HI, (lambda _: None) if streamed else None)
    # Whatever becomes of it, it says why.
    assert "Model requests are not allowed" in "".join(traceback.format_exception(caught.value))
    assert server.requests == []


@pytest.mark.usefixtures("model_requests")
@pytest.mark.parametrize("api", APIS)
async def test_no_vendor_is_reached_though_a_test_asks_models(api: str) -> None:
    # Where it really is: no address is given.
    providers = Providers({name: ProviderConfig(api_key=KEY) for name in ("anthropic", "google", "openai")})
    try:
        with pytest.raises(NetworkForbiddenError):
            await VendorModels(providers).ask(name_of(recorded(f"{api}/text")), HI)
    finally:
        await providers.close()
