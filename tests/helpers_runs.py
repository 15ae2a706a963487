"""Configs of small runs, and damage to files."""

from configs import quickstart


def tiny(**fields):
    config = quickstart.get_config("smoke")
    config.data.name = "digits"
    config.model.width = 16
    config.claims = ()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def spoil(file, damage):
    content = bytearray(file.read_bytes())
    if damage == "one bit":
        content[len(content) // 2] ^= 1
    file.write_bytes({"truncated": content[: len(content) // 2], "emptied": b""}.get(damage, content))
