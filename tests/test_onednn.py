"""Matrix products by oneDNN against products in fp64, and what is left to torch."""

import pytest
import torch

from qedmeg import onednn

KINDS = {
    "rows": lambda rows, columns: torch.randn(rows, columns),
    "transposed": lambda rows, columns: torch.randn(columns, rows).T,
    "columns of a wider one": lambda rows, columns: torch.randn(rows, 2 * columns)[:, 5 : columns + 5],
    "every second column": lambda rows, columns: torch.randn(rows, 2 * columns)[:, ::2],
}


@pytest.fixture
def asked(monkeypatch):
    """The shapes that oneDNN is asked for."""
    shapes = []
    product = onednn.product

    def counted(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        shapes.append((*left.shape, right.shape[1]))
        return product(left, right)

    monkeypatch.setattr(onednn, "product", counted)
    return shapes


@pytest.mark.parametrize("left", KINDS)
@pytest.mark.parametrize("right", KINDS)
def test_products_are_those_of_fp64(left, right, asked):
    torch.manual_seed(0)
    a_MK, b_KN = KINDS[left](300, 200), KINDS[right](200, 160)
    found_MN = onednn._mm(a_MK, b_KN)
    assert found_MN.is_contiguous()
    torch.testing.assert_close(found_MN.double(), a_MK.double() @ b_KN.double(), atol=1e-4, rtol=1e-5)
    assert asked == ([] if "every second column" in (left, right) else [(300, 200, 160)])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((64, 64, 64), torch.float32), ((300, 200, 160), torch.float64), ((0, 200, 160), torch.float32)],
    ids=str,
)
def test_small_products_and_other_types_are_torchs(shape, dtype, asked):
    a_MK, b_KN = torch.randn(shape[:2], dtype=dtype), torch.randn(shape[1:], dtype=dtype)
    torch.testing.assert_close(onednn._mm(a_MK, b_KN), torch.addmm(torch.zeros(1, dtype=dtype), a_MK, b_KN))
    assert asked == []


def test_a_layer_and_its_gradients_go_through_it(asked):
    if onednn.use_onednn() is None:
        pytest.skip("MKL is as fast on this CPU")
    layer = torch.nn.Linear(256, 512, bias=False)
    x = torch.randn(4, 128, 256, requires_grad=True)
    layer(x).square().sum().backward()
    assert asked == [(512, 256, 512), (512, 512, 256), (512, 512, 256)]  # y, and the gradients in some order
    y = x.detach().double() @ layer.weight.detach().double().T
    torch.testing.assert_close(x.grad.double(), 2 * y @ layer.weight.detach().double(), atol=1e-3, rtol=1e-4)
    expected = 2 * y.flatten(0, 1).T @ x.detach().double().flatten(0, 1)
    torch.testing.assert_close(layer.weight.grad.double(), expected, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize(
    ("capability", "maker", "faster"),
    [
        ("AVX512", "AuthenticAMD", True),
        ("AVX512", "GenuineIntel", False),
        ("AVX2", "AuthenticAMD", False),
    ],
)
def test_only_where_mkl_leaves_half_of_the_cpu_unused(capability, maker, faster, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"vendor_id : {maker}\n")
    monkeypatch.setattr(onednn, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert onednn._is_faster() == faster
