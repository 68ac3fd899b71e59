"""OpenAI's Chat Completions, with what older servers still send: one ``function_call`` in the place of tool calls."""

from __future__ import annotations

from collections.abc import Iterable

from openai.types import chat
from openai.types.chat import chat_completion_chunk as chunks
from openai.types.chat.chat_completion_message_function_tool_call import (
    ChatCompletionMessageFunctionToolCall as ToolCall,
)
from openai.types.chat.chat_completion_message_function_tool_call import Function
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIStreamedResponse

__all__ = ["ChatModel"]

#: There can be only one, and it has no id.
_ID = "function_call"


class ChatModel(OpenAIChatModel):
    """pydantic-ai's model, reading the old form too. Its hooks are made for subclasses."""

    def _validate_completion(self, response: chat.ChatCompletion):  # noqa: ANN202  the type is pydantic-ai's own
        for choice in response.choices or ():
            call = choice.message.function_call
            if call is not None and not choice.message.tool_calls:
                function = Function(name=call.name, arguments=call.arguments)
                choice.message.tool_calls = [ToolCall(id=_ID, type="function", function=function)]
        return super()._validate_completion(response)

    def _missing_finish_reason(self, choice: chat.chat_completion.Choice):  # noqa: ANN202, ARG002  as above
        # pydantic-ai takes such an answer for a whole one. Gateways send it for an upstream that broke off.
        raise UnexpectedModelBehavior("the answer has no finish reason")

    @property
    def _streamed_response_cls(self) -> type[OpenAIStreamedResponse]:
        return _Streamed


class _Streamed(OpenAIStreamedResponse):
    def _map_tool_call_delta(self, choice: chunks.Choice) -> Iterable[ModelResponseStreamEvent]:
        call = choice.delta.function_call
        if call is not None and not choice.delta.tool_calls:
            function = chunks.ChoiceDeltaToolCallFunction(name=call.name, arguments=call.arguments)
            choice.delta.tool_calls = [
                chunks.ChoiceDeltaToolCall(index=0, id=_ID if call.name else None, type="function", function=function)
            ]
        return super()._map_tool_call_delta(choice)
