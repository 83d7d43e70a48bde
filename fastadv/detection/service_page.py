"""The page that describes the HTTP service: no script, and nothing from another host."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

#: Lets the page load nothing, from anywhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

_STYLE = "body{font:1rem/1.5 sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}td{padding:0 1rem 0 0}"


def page(schema: Mapping[str, Any], limits: Mapping[str, object]) -> str:
    """The HTML page of the API.

    Args:
        schema: the API as OpenAPI describes it.
        limits: name to value.
    """
    title = escape(f"{schema['info']['title']} {schema['info']['version']}")
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"]
    parts.append(f"<h1>{title}</h1><p>The same for programs: <a href=openapi.json>openapi.json</a>.")
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            parts.append(f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(about.get('description', ''))}")
            kinds = about.get("requestBody", {}).get("content", {})
            if kinds:
                parts.append(f"<p>Body: {', '.join(f'<code>{escape(kind)}</code>' for kind in kinds)}.")
    for name, model in schema.get("components", {}).get("schemas", {}).items():
        rows = [
            f"<tr><td><code>{escape(field)}</code><td>{escape(about.get('description', ''))}"
            for field, about in model.get("properties", {}).items()
        ]
        parts.append(f"<h2>{escape(name)}</h2><table>{''.join(rows)}</table>")
    rows = [f"<tr><td><code>{escape(name)}</code><td>{escape(str(value))}" for name, value in limits.items()]
    parts.append(f"<h2>Limits</h2><table>{''.join(rows)}</table>")
    return "\n".join(parts) + "</html>\n"
