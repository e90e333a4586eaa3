from cam_helpers import data
import pytest


@pytest.fixture(scope="session")
def fashion_mnist():
    """The real Fashion-MNIST, or a skip that says so."""
    images = data.fashion_mnist()
    if images.source != "Fashion-MNIST":
        pytest.skip("Fashion-MNIST is out of reach here: only drawn garments can be had")
    return images
