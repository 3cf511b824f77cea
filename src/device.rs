//! Packet devices: the TUN, its memory twin, and a tap around either.
