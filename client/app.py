"""The ClientApp: one short handler per message, no logic of its own."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client import handlers
from client.site import FAULTS, Site, note_fault, open_site
from common.config import Config, from_json
from common.data.manifest import OWN_FOLDER
from common.errors import ConsiliumError
from common.messages import (
    EnrolRequest,
    EvaluateRequest,
    MessageError,
    RefineRequest,
    Request,
    TeachRequest,
    WireMessage,
    code_hash,
)

app = ClientApp()
R = TypeVar("R", bound=Request)


def answer(message: Message, context: Context, kind: type[R], handle: Callable[[Site, Config, R], WireMessage]) -> Message:
    """Decodes a request, guards, opens the site, handles the request and encodes the reply.

    An unforeseen fault leaves the site as its kind and code line only: its text may quote patient data, and stays in the
    hospital's own log.

    Raises:
        ConsiliumError: If the site cannot or will not answer; Flower sends the text to the server.
    """
    torch.set_num_threads(1)
    try:
        request = kind.from_record(message.content)
        if request.code != code_hash():
            raise ConsiliumError(
                f"This site runs other code ({code_hash()}) than the server ({request.code}): another checkout was imported, or "
                "a side is not updated. Install the same version on both sides, and start each SuperLink in a folder of its own."
            )
        config = from_json(request.config)
        return Message(handle(open_site(context, config), config, request).to_record(), reply_to=message)
    except ConsiliumError:
        raise
    except MessageError as error:
        raise ConsiliumError(f"Request refused: {error}.") from None
    except Exception as error:
        note_fault(context)
        place = traceback.extract_tb(error.__traceback__)[-1]
        line = f"line {place.lineno} of {Path(place.filename).name}"
        raise ConsiliumError(
            f"The site failed with {type(error).__name__} in {place.name} ({line}). Its own {OWN_FOLDER}/{FAULTS} holds more."
        ) from None


@app.query("enrol")
def enrol(message: Message, context: Context) -> Message:
    """Phase 1."""
    return answer(message, context, EnrolRequest, handlers.enrol)


@app.train("teach")
def teach(message: Message, context: Context) -> Message:
    """Phase 2."""
    return answer(message, context, TeachRequest, handlers.teach)


@app.train("refine")
def refine(message: Message, context: Context) -> Message:
    """Phase 4."""
    return answer(message, context, RefineRequest, handlers.refine)


@app.evaluate("patterns")
def evaluate(message: Message, context: Context) -> Message:
    """Phase 5."""
    return answer(message, context, EvaluateRequest, handlers.evaluate)
