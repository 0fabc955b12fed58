package store

import (
	"time"

	"github.com/berthd/berth/base/errs"
)

// Pod is the row of a pod: the reservation of its name, the intent, and the record
// of what was made. Config and Body are engine/pod's own encoding.
//
//	creating ──made──> ready ──stop──> stopped ──remove──> (none)
//	    └── failed, or the daemon died ──> removing ──> (none)
type Pod struct {
	Namespace string
	ID        string
	Name      string // unique; from name, namespace, uid and attempt
	State     PodState
	Boot      string
	Handler   string // runtime handler
	CreatedAt time.Time
	Config    []byte
	Body      []byte
}

// PodState is a step of a pod's life.
type PodState string

// The states of pods.
const (
	PodCreating PodState = "creating"
	PodReady    PodState = "ready"
	PodStopped  PodState = "stopped"
	PodRemoving PodState = "removing"
)

// PodContainer is what CRI adds to a container.
//
//	creating ──> created ──start──> running ──exit──> exited ──remove──> (none)
type PodContainer struct {
	Namespace string
	ID        string
	Pod       string
	Name      string // unique in its pod; from name and attempt
	State     ContainerState
	Boot      string
	CreatedAt time.Time
	Config    []byte
	Body      []byte
}

// ContainerState is a step of a pod container's life.
type ContainerState string

// The states of pods' containers.
const (
	ContainerCreating ContainerState = "creating"
	ContainerCreated  ContainerState = "created"
	ContainerRunning  ContainerState = "running"
	ContainerExited   ContainerState = "exited"
	ContainerRemoving ContainerState = "removing"
)

func scanPod(s scanner) (p Pod, err error) {
	var created int64
	err = s.Scan(&p.Namespace, &p.ID, &p.Name, &p.State, &p.Boot, &p.Handler, &created, &p.Config, &p.Body)
	p.CreatedAt = at(created)
	return p, err
}

func scanPodContainer(s scanner) (c PodContainer, err error) {
	var created int64
	err = s.Scan(&c.Namespace, &c.ID, &c.Pod, &c.Name, &c.State, &c.Boot, &created, &c.Config, &c.Body)
	c.CreatedAt = at(created)
	return c, err
}

// AllPods lists the pods of every namespace, oldest first.
func (tx *Tx) AllPods() ([]Pod, error) {
	return many(tx, scanPod, `SELECT ns, id, name, state, boot, handler, created, config, body FROM pod ORDER BY created`)
}

// AllPodContainers lists the pods' containers of every namespace, oldest first.
func (tx *Tx) AllPodContainers() ([]PodContainer, error) {
	return many(tx, scanPodContainer, `SELECT ns, id, pod, name, state, boot, created, config, body FROM pod_container ORDER BY created`)
}

// CreatePod reserves a pod's name and writes the intent.
func (tx *Tx) CreatePod(p Pod) (Pod, error) {
	there, err := tx.exists(`SELECT 1 FROM pod WHERE ns = ? AND (id = ? OR name = ?)`, tx.scope.Namespace, p.ID, p.Name)
	if err != nil {
		return p, err
	}
	if there {
		return p, errs.New(errs.AlreadyExists, "pod %q: already exists", p.Name)
	}
	p.Namespace, p.State, p.Boot, p.CreatedAt, tx.made = tx.scope.Namespace, PodCreating, tx.store.cfg.BootID, tx.now, true
	return p, tx.exec(`INSERT INTO pod (ns, id, name, state, boot, handler, created, config, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		p.Namespace, p.ID, p.Name, string(p.State), p.Boot, p.Handler, p.CreatedAt.UnixNano(), p.Config, p.Body)
}

// PutPod writes state, config and body.
func (tx *Tx) PutPod(p Pod) error {
	return tx.exec(`UPDATE pod SET state = ?, config = ?, body = ? WHERE ns = ? AND id = ?`, string(p.State), p.Config, p.Body, tx.scope.Namespace, p.ID)
}

// DeletePod forgets a pod.
func (tx *Tx) DeletePod(id string) error {
	return tx.exec(`DELETE FROM pod WHERE ns = ? AND id = ?`, tx.scope.Namespace, id)
}

// CreatePodContainer reserves a container's name in its pod and writes the intent.
func (tx *Tx) CreatePodContainer(c PodContainer) (PodContainer, error) {
	there, err := tx.exists(`SELECT 1 FROM pod_container WHERE ns = ? AND (id = ? OR (pod = ? AND name = ?))`, tx.scope.Namespace, c.ID, c.Pod, c.Name)
	if err != nil {
		return c, err
	}
	if there {
		return c, errs.New(errs.AlreadyExists, "container %q of pod %s: already exists", c.Name, c.Pod)
	}
	c.Namespace, c.State, c.Boot, c.CreatedAt, tx.made = tx.scope.Namespace, ContainerCreating, tx.store.cfg.BootID, tx.now, true
	return c, tx.exec(`INSERT INTO pod_container (ns, id, pod, name, state, boot, created, config, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		c.Namespace, c.ID, c.Pod, c.Name, string(c.State), c.Boot, c.CreatedAt.UnixNano(), c.Config, c.Body)
}

// PutPodContainer writes state, config and body.
func (tx *Tx) PutPodContainer(c PodContainer) error {
	return tx.exec(`UPDATE pod_container SET state = ?, config = ?, body = ? WHERE ns = ? AND id = ?`, string(c.State), c.Config, c.Body, tx.scope.Namespace, c.ID)
}

// DeletePodContainer forgets a pod's container.
func (tx *Tx) DeletePodContainer(id string) error {
	return tx.exec(`DELETE FROM pod_container WHERE ns = ? AND id = ?`, tx.scope.Namespace, id)
}
