import ipaddress

import pytest

from devcluster.commands import DevclusterError
from devcluster.subnets import MAX_WORKERS, POD_NETWORK, Link, allocate


def test_the_first_cluster_gets_the_first_network() -> None:
    assert allocate([], []) == 0
    link = Link(0)
    assert (link.gateway, link.node_address) == ("10.89.0.1", "10.89.0.2")
    assert link.prefix_length == 30


def test_a_worker_has_a_link_within_its_clusters_network() -> None:
    link = Link(7, 1)
    assert (link.gateway, link.node_address) == ("10.89.7.5", "10.89.7.6")
    assert link.cluster_network == Link(7).cluster_network == "10.89.7.0/24"
    assert str(link.pod_network) == "10.244.1.0/24"


def test_networks_of_other_clusters_are_left_alone() -> None:
    assert allocate([0, 1, 3], []) == 2


@pytest.mark.parametrize("used", ["10.89.0.0/30", "10.89.0.1", "10.89.0.0/24", "10.89.0.128/25"])
def test_what_this_machine_uses_is_left_alone(used: str) -> None:
    assert allocate([], [used]) == 1


def test_networks_elsewhere_do_not_count() -> None:
    assert allocate([], ["192.168.0.0/16", "10.90.0.0/16", "fd00::/64"]) == 0


@pytest.mark.parametrize(("taken", "used"), [(range(256), []), ([], ["10.88.0.0/15"])])
def test_when_none_is_free_it_says_what_to_do(taken: list[int], used: list[str]) -> None:
    with pytest.raises(DevclusterError, match="get clusters"):
        allocate(taken, used)


def test_no_two_links_share_an_address_or_a_name() -> None:
    links = [Link(number, node) for number in range(256) for node in range(MAX_WORKERS + 1)]
    assert len({link.node_address for link in links}) == len(links)
    assert len({link.gateway for link in links}) == len(links)
    assert len({link.interface for link in links}) == len(links)
    assert all(len(link.interface) <= 15 for link in links)  # the kernel's limit


def test_no_two_nodes_of_a_cluster_share_a_pods_address() -> None:
    networks = [Link(0, node).pod_network for node in range(MAX_WORKERS + 1)]
    assert len(set(networks)) == len(networks)
    whole = ipaddress.IPv4Network(POD_NETWORK)
    assert all(network.subnet_of(whole) for network in networks)
