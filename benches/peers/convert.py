"""A GGUF file to Hugging Face layout and to a GGUF file of the same weights, both in f32.

    convert.py SOURCE.gguf DIRECTORY TARGET.gguf

Quantised weights are multiplied out, so that all peers have the same numbers.
"""

import sys
from pathlib import Path

import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer


def to_hugging_face(source: Path, target: Path) -> None:
    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # What transformers notes about the file it came from, and would not save.
    del read.config.quantization_config
    plain = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)


def to_f32_gguf(source: Path, target: Path) -> None:
    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    writer.add_file_type(LlamaFileType.ALL_F32)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        array = field.types[0] == GGUFValueType.ARRAY
        writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if array else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    source, directory, gguf = map(Path, sys.argv[1:])
    to_hugging_face(source, directory)
    to_f32_gguf(source, gguf)
