"""Schemas of bodies, as the OpenAPI description shows them."""

from __future__ import annotations

from typing import Any

from odn_hybrid.serve.app.asked import INPUT, OUTPUTS
from odn_hybrid.serve.asking import LONGEST

__all__ = ["INFER_BODY", "OPTIONS", "SCHEMAS"]

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
TRUTH: Schema = {"type": "boolean"}


def _object(properties: Schema, optional: tuple[str, ...] = (), **more: Any) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, **more}


def _list(of: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": of, **more}


#: What a request may wish; see `Options`.
OPTIONS: Schema = {
    "max_depth": {
        "type": "integer",
        "minimum": 1,
        "maximum": 999_999_999,
        "description": "Units to run at most.",
    },
    "min_confidence": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "description": "Calibrated probability below which an answer is not final: the input goes on.",
    },
    "deadline_ms": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": LONGEST,
        "description": "Milliseconds from arrival after which an answer is of no use.",
    },
}
INFER_BODY: Schema = _object(
    {
        "id": {**TEXT, "maxLength": 256},
        "parameters": _object(
            {
                **OPTIONS,
                "timeout": {"type": "integer", "minimum": 0, "description": "A deadline in microseconds."},
                "priority": {**WHOLE, "description": "Has no influence."},
                "binary_data_output": TRUTH,
            },
            optional=(*OPTIONS, "timeout", "priority", "binary_data_output"),
            additionalProperties=False,
        ),
        "inputs": _list(
            _object(
                {
                    "name": {"const": INPUT},
                    "datatype": {
                        "enum": ["FP32", "UINT8"],
                        "description": "FP32: prepared pixels (n, channels, height, width). UINT8: pixels as "
                        "files hold them, (n, height, width, channels).",
                    },
                    "shape": _list({"type": "integer", "minimum": 1}, minItems=4, maxItems=4),
                    "data": {"type": "array", "items": {}, "description": "Numbers, flat or nested."},
                    "parameters": _object(
                        {"binary_data_size": {"type": "integer", "minimum": 0}}, ("binary_data_size",)
                    ),
                },
                optional=("data", "parameters"),
            ),
            minItems=1,
            maxItems=1,
        ),
        "outputs": _list(
            _object(
                {
                    "name": {"enum": list(OUTPUTS)},
                    "parameters": _object(
                        {"binary_data": TRUTH, "classification": {"type": "integer", "minimum": 0}},
                        ("binary_data", "classification"),
                    ),
                },
                optional=("parameters",),
            ),
            maxItems=len(OUTPUTS),
        ),
    },
    optional=("id", "parameters", "outputs"),
)
TENSOR = _object({"name": TEXT, "datatype": TEXT, "shape": _list(WHOLE)})
SCHEMAS: Schema = {
    "Error": _object({"error": TEXT, "request_id": TEXT}, optional=("request_id",)),
    "Live": _object({"live": {"const": True}}),
    "Ready": _object({"ready": {"const": True}}),
    "ServerMetadata": _object({"name": TEXT, "version": TEXT, "extensions": _list(TEXT)}),
    "ModelReady": _object({"name": TEXT, "ready": {"const": True}}),
    "ModelMetadata": _object(
        {
            "name": TEXT,
            "versions": _list(TEXT),
            "platform": TEXT,
            "inputs": _list(TENSOR),
            "outputs": _list(TENSOR),
        }
    ),
    "ModelConfig": _object(
        {
            "name": TEXT,
            "platform": TEXT,
            "backend": TEXT,
            "max_batch_size": WHOLE,
            "input": _list({"type": "object"}),
            "output": _list({"type": "object"}),
        }
    ),
    "InferAnswer": _object(
        {
            "model_name": TEXT,
            "model_version": TEXT,
            "id": TEXT,
            "parameters": _object({"certified": TRUTH, "version": TEXT}),
            "outputs": _list({**TENSOR, "properties": {**TENSOR["properties"], "data": {"type": "array"}}}),
        },
        optional=("id",),
    ),
    "Prediction": _object(
        {
            "model": TEXT,
            "version": TEXT,
            "label": {"type": ["string", "null"]},
            "class": WHOLE,
            "confidence": {"type": "number", "description": "Calibrated probability of the answer."},
            "top": {
                **_list(
                    _object(
                        {
                            "class": WHOLE,
                            "label": {"type": ["string", "null"]},
                            "probability": {"type": "number"},
                        }
                    )
                ),
                "description": "The best classes by logits, with calibrated probabilities.",
            },
            "exit": WHOLE,
            "units_run": WHOLE,
            "units_total": WHOLE,
            "certified": TRUTH,
            "milliseconds": {"type": "number", "description": "From the request's arrival to its answer."},
        }
    ),
}
