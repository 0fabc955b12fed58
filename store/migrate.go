package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"

	"github.com/berthd/berth/base/errs"
)

// migrate brings the database to the newest version, one step a transaction. A
// newer database than this program knows is refused: an older berth never
// rewrites what a newer one wrote.
func (s *Store) migrate(ctx context.Context) error {
	version, err := s.version(ctx)
	if err != nil {
		return err
	}
	if version > len(migrations) {
		return errs.New(errs.FailedPrecondition, "database %s has format %d and this berth knows formats up to %d: run the newer berth that wrote it, or another --root",
			s.cfg.Root, version, len(migrations))
	}
	for v := version; v < len(migrations); v++ {
		steps := "BEGIN IMMEDIATE;" + migrations[v] + fmt.Sprintf("INSERT OR REPLACE INTO meta (key, value) VALUES ('format', '%d'); COMMIT;", v+1)
		if _, err := s.write.conn.ExecContext(ctx, steps); err != nil {
			_, back := s.write.conn.ExecContext(ctx, "ROLLBACK")
			return errors.Join(fmt.Errorf("bring database %s from format %d to %d: %w", s.cfg.Root, v, v+1, kindOf(err)), back)
		}
	}
	return nil
}

func (s *Store) version(ctx context.Context) (int, error) {
	var n int
	if err := s.write.conn.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema WHERE name = 'meta'`).Scan(&n); err != nil {
		return 0, fmt.Errorf("read database: %w", kindOf(err))
	}
	if n == 0 {
		return 0, nil
	}
	var text string
	err := s.write.conn.QueryRowContext(ctx, `SELECT value FROM meta WHERE key = 'format'`).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read database format: %w", kindOf(err))
	}
	return strconv.Atoi(text)
}

// Meta reads or, with a value not yet there, makes a small fact about this store,
// as its uuid.
func (s *Store) Meta(ctx context.Context, key string, make func() string) (string, error) {
	return Set(ctx, s.In(Scope{}), func(tx *Tx) (string, error) {
		v, err := one(tx, scanOne[string], `SELECT value FROM meta WHERE key = ?`, key)
		if !errors.Is(err, sql.ErrNoRows) {
			return v, err
		}
		v = make()
		return v, tx.exec(`INSERT INTO meta (key, value) VALUES (?, ?)`, key, v)
	})
}
