package pod

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// deleteLink removes an interface; one that is gone is no error.
func deleteLink(name string) error {
	l, err := netlink.LinkByName(name)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		return fmt.Errorf("remove bridge %s: %w", name, err)
	}
	return nil
}
