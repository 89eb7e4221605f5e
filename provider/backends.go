package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/moby/client"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"
	corev1 "k8s.io/api/core/v1"

	"github.com/faas-predict/faas-predict/provider/api"
	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
	"github.com/faas-predict/faas-predict/provider/backend/kubernetes"
	"github.com/faas-predict/faas-predict/provider/backend/process"
	"github.com/faas-predict/faas-predict/provider/backend/swarm"
	"github.com/faas-predict/faas-predict/provider/bundle"
	"github.com/faas-predict/faas-predict/provider/config"
	"github.com/faas-predict/faas-predict/provider/image"
	"github.com/faas-predict/faas-predict/provider/registry"
	"github.com/faas-predict/faas-predict/watchdog/model"
	"github.com/faas-predict/faas-predict/watchdog/packages"
)

// running is what serve needs of a backend.
type running interface {
	backend.Backend
	api.Functions
	prometheus.Collector
	// EndStreams ends the log streams that are open, which nothing else would end.
	EndStreams()
}

// openBackend opens the backend that the settings name.
func openBackend(ctx context.Context, cfg *config.Config, db *bbolt.DB, models *registry.Registry) (running, error) {
	switch cfg.Backend {
	case config.Swarm:
		engine, err := swarm.Open(ctx, cfg.SwarmNetwork)
		if err != nil {
			return nil, err
		}
		images, err := dockerImages()
		if err != nil {
			return nil, err
		}
		if images.Scratch, err = scratch(cfg); err != nil {
			return nil, err
		}
		return openCluster(ctx, cfg, engine, images)
	case config.Kubernetes:
		return openKubernetes(ctx, cfg, models)
	default:
		images, err := dockerImages()
		if err != nil {
			return nil, err
		}
		return process.Open(ctx, cfg, db, image.Models{Registry: models, Registries: registries(cfg), Engine: images})
	}
}

// registries are where images are pulled from, as this program reads them.
func registries(cfg *config.Config) image.Registries {
	return image.Registries{Plain: cfg.PlainRegistries, MaxBytes: cfg.MaxImageBytes, Limits: model.DefaultLimits}
}

// dockerImages are those of the engine that the environment names. It is connected to when an image is asked for.
func dockerImages() (image.Engine, error) {
	docker, err := client.New(client.FromEnv)
	if err != nil {
		return image.Engine{}, fmt.Errorf("read the settings of the Docker engine: %w", err)
	}
	return image.Engine{Docker: docker, Limits: model.DefaultLimits}, nil
}

// scratch is a folder for bundles of images that are looked at, without those of a provider that was killed meanwhile.
func scratch(cfg *config.Config) (string, error) {
	dir := filepath.Join(cfg.DataDir, "images")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return "", fmt.Errorf("make a folder for images' bundles: %w", err)
	}
	return dir, nil
}

func openKubernetes(ctx context.Context, cfg *config.Config, models *registry.Registry) (running, error) {
	connection, err := kubernetes.Connect()
	if err != nil {
		return nil, err
	}
	var bundles *kubernetes.Bundles
	if cfg.ProviderURL != "" {
		bundles = &kubernetes.Bundles{
			URL: cfg.ProviderURL, CA: cfg.ProviderCA, Credential: models.Credential, Variables: packages.PortableSources(os.Environ()),
		}
	}
	engine, err := kubernetes.Open(kubernetes.Options{
		Config:     connection,
		Namespaces: cfg.KubernetesNamespaces,
		User:       cfg.KubernetesUser,
		PullPolicy: corev1.PullPolicy(cfg.KubernetesPullPolicy),
		Bundles:    bundles,
	})
	if err != nil {
		return nil, err
	}
	images := registries(cfg)
	if images.Scratch, err = scratch(cfg); err != nil {
		return nil, err
	}
	return openCluster(ctx, cfg, engine, bundle.Images{
		Registry: models,
		Others:   images,
		Runtimes: map[string]string{model.RuntimePython: cfg.RuntimeImagePython, model.RuntimeR: cfg.RuntimeImageR},
		Served:   bundles != nil,
	})
}

func openCluster(ctx context.Context, cfg *config.Config, engine cluster.Engine, images cluster.Images) (running, error) {
	return cluster.Open(ctx, cluster.Options{
		Engine:        engine,
		Images:        images,
		MaxReplicas:   cfg.MaxReplicas,
		MaxIdleConns:  cfg.MaxIdleConns,
		DeployTimeout: cfg.DeployTimeout,
		DrainTimeout:  cfg.DrainTimeout,
		KeepWarm:      cfg.KeepWarm,
	})
}
