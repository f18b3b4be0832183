import pytest

from devcluster.commands import DevclusterError
from devcluster.subnets import Link, allocate


def test_the_first_cluster_gets_the_first_link() -> None:
    link = allocate([], [])
    assert link == Link(0)
    assert (link.host_address, link.node_address) == ("10.89.0.1", "10.89.0.2")
    assert link.prefix_length == 30


def test_links_of_other_clusters_are_left_alone() -> None:
    assert allocate([0, 1, 3], []) == Link(2)


@pytest.mark.parametrize("used", ["10.89.0.0/30", "10.89.0.1", "10.89.0.0/24"])
def test_what_this_machine_uses_is_left_alone(used: str) -> None:
    assert allocate([], [used]) == Link(1)


def test_networks_elsewhere_do_not_count() -> None:
    assert allocate([], ["192.168.0.0/16", "10.90.0.0/16", "fd00::/64"]) == Link(0)


@pytest.mark.parametrize(("taken", "used"), [(range(256), []), ([], ["10.88.0.0/15"])])
def test_when_none_is_free_it_says_what_to_do(taken: list[int], used: list[str]) -> None:
    with pytest.raises(DevclusterError, match="get clusters"):
        allocate(taken, used)


def test_no_two_links_share_an_address_or_a_name() -> None:
    links = [Link(number) for number in range(256)]
    assert len({link.node_address for link in links}) == 256
    assert len({link.interface for link in links}) == 256
    assert all(len(link.interface) <= 15 for link in links)  # the kernel's limit
