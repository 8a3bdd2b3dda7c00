"""The zoo of hosts."""

from langdc.interfaces import Host
from langdc.registry import Registry

hosts: Registry[Host] = Registry("host")
