package store

import "github.com/berthd/berth/base/errs"

// Box says that a shim holds, or is to hold, a sandbox, and where it is. Its states
// and fields are a Task's; ID is the sandbox's.
type Box Task

func scanBox(s scanner) (Box, error) {
	t, err := scanTask(s)
	return Box(t), err
}

// Box returns a sandbox's box.
func (tx *Tx) Box(sid string) (Box, error) {
	b, err := one(tx, scanBox, `SELECT `+taskColumns+` FROM box WHERE ns = ? AND id = ?`, tx.scope.Namespace, sid)
	return b, missing(err, "sandbox %q", sid)
}

// AllBoxes lists the boxes of every namespace, oldest first.
func (tx *Tx) AllBoxes() ([]Box, error) {
	return many(tx, scanBox, `SELECT `+taskColumns+` FROM box ORDER BY created`)
}

// CreateBox writes the intent to make a box.
func (tx *Tx) CreateBox(b Box) (Box, error) {
	there, err := tx.exists(`SELECT 1 FROM box WHERE ns = ? AND id = ?`, tx.scope.Namespace, b.ID)
	if err != nil {
		return b, err
	}
	if there {
		return b, errs.New(errs.AlreadyExists, "sandbox %q: a shim holds it already", b.ID)
	}
	b.Namespace, b.State, b.Boot, b.CreatedAt = tx.scope.Namespace, TaskCreating, tx.store.cfg.BootID, tx.now
	return b, tx.exec(`INSERT INTO box (`+taskColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?)`, b.Namespace, b.ID, b.Runtime, string(b.State), b.Boot,
		tx.now.UnixNano(), encodeBody(b.Body))
}

// PutBox writes state and body of a box.
func (tx *Tx) PutBox(b Box) error {
	return tx.exec(`UPDATE box SET state = ?, body = ? WHERE ns = ? AND id = ?`, string(b.State), encodeBody(b.Body), tx.scope.Namespace, b.ID)
}

// DeleteBox forgets a box.
func (tx *Tx) DeleteBox(sid string) error {
	return tx.exec(`DELETE FROM box WHERE ns = ? AND id = ?`, tx.scope.Namespace, sid)
}
