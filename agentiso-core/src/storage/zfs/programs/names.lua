-- Names of the volumes in some containers, and the bytes that can still be written below one of them.
local args = ...
local volumes = {}
for container in pairs(args.containers) do
  if zfs.exists(container) then
    for name in zfs.list.children(container) do
      if zfs.get_prop(name, "type") == "volume" then
        volumes[name] = true
      end
    end
  end
end
return { volumes = volumes, available = zfs.get_prop(args.root, "available") }
