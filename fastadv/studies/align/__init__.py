"""``fastadv align``: aligned faces from a folder of photographs."""
