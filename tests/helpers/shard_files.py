"""Weight files of a checkpoint, and changes of what they hold."""

from safetensors.torch import load_file, save_file


def list_shards(folder):
    return sorted(folder.glob("*.safetensors"))


def change_shard(folder, change, index=0):
    path = list_shards(folder)[index]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
